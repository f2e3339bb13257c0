"""Prints the demo's steps, on a terminal or into a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final

from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from concurrent_clients import Answer
from emberd import DEFAULT_MODEL, Manager, Server
from emberd import Progress as StartProgress
from frameworks import Hit
from passages import MultilingualSet, Passage, Question
from recall import RANKS, Row

_NOT_QWEN3: Final = (
    "The vectors of emberd/demo are those of multilingual-e5-small: they are NOT Qwen3 vectors, "
    "and an index of them cannot be used with another model."
)
_PIPED_COLUMNS: Final = 118
_SOURCE_COLUMNS: Final = 26
_COLUMNS_BESIDE_PASSAGE: Final = 56
_MIN_COLUMNS: Final = 20
_INDENT: Final = (0, 0, 0, 3)
_S_PER_MIN: Final = 60
_MS_PER_S: Final = 1000


class Report:
    """Writes to stdout and numbers the steps."""

    def __init__(self) -> None:
        self._is_terminal = sys.stdout.isatty()
        width = None if self._is_terminal else _PIPED_COLUMNS
        self._console = Console(highlight=False, width=width)
        self._steps = 0

    def step(self, title: str) -> None:
        """Begin the next step."""
        self._steps += 1
        self._console.print(Text(f"\n{self._steps}. {title}", style="bold"))

    def line(self, text: str, style: str = "") -> None:
        """Write a line of the current step."""
        self._indented(Text(text, style=style))

    def busy(self, text: str) -> AbstractContextManager[Any]:
        """Show a spinner on a terminal."""
        return self._console.status(text) if self._is_terminal else nullcontext()

    @contextmanager
    def starting(self, model: str) -> Iterator[Callable[[StartProgress], None]]:
        """Show the progress of a start: a spinner on a terminal, else a line for each change."""
        last = ""
        with self.busy(f"looking for a server of {model}") as status:

            def show(progress: StartProgress) -> None:
                nonlocal last
                if status is not None:
                    status.update(Text(f"{progress.text} ({progress.seconds:.0f} s)"))
                elif progress.text != last:
                    self.line(f"{model}: {progress.text}")
                last = progress.text

            yield show

    @contextmanager
    def bar(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show how many of ``total`` passages are done, then the speed."""
        columns = (TextColumn("   {task.description}"), BarColumn(), MofNCompleteColumn())
        started_s = time.monotonic()
        with Progress(
            *columns, TimeElapsedColumn(), console=self._console, disable=not self._is_terminal
        ) as progress:
            task = progress.add_task(name, total=total)
            yield lambda count: progress.advance(task, count)
        seconds = time.monotonic() - started_s
        speed = f"{total} passages in {seconds:.1f} s, {total / seconds:.0f} passages/s"
        self.line(f"{name:<11} {speed}")

    def server(self, server: Server, model: str, reason: str | None) -> None:
        """Show the server and why it is used.

        Args:
            server: The server.
            model: The model that was asked for.
            reason: Why the default model cannot be served; None if it can, or another was named.
        """
        endpoint = server.endpoint
        if reason is not None:
            self.line(f"{DEFAULT_MODEL} cannot be served here, so emberd/demo is used.", "yellow")
            self.line(reason, "dim")
        if model == "emberd/demo":
            self.line(_NOT_QWEN3, "bold yellow")
        own = "started by this demo" if server.started else "was already running"
        origin = own if server.origin == "own" else "not started by emberd"
        self.line(f"{endpoint.base_url}: {origin}")
        self.line(f"{server.reason}.")
        self.line(
            f"{model}, {endpoint.dimensions} dimensions, start_id {server.start_id or 'unknown'}"
        )

    def hits(
        self,
        question: Question,
        found: tuple[Sequence[Hit], Sequence[Hit]],
        names: tuple[str, str],
        by_id: Mapping[str, Passage],
    ) -> None:
        """Show what both frameworks found, in the order of the first one.

        Args:
            question: The question; its answer is shown in green.
            found: What each framework found.
            names: Their names.
            by_id: All passages.
        """
        language = f"[{question.language}] " if question.language else ""
        self.line(f"{language}{question.text}", "bold cyan")
        table = _table(*names, "found in", "passage")
        others = {hit.id: hit.score for hit in found[1]}
        for hit in found[0]:
            passage = by_id[hit.id]
            table.add_row(
                f"{hit.score:.4f}",
                f"{others[hit.id]:.4f}" if hit.id in others else "-",
                _truncated(passage.source, _SOURCE_COLUMNS),
                _truncated(passage.text, self._console.width - _COLUMNS_BESIDE_PASSAGE),
                style="green" if hit.id == question.answer else None,
            )
        self._indented(table)

    def clients(self, answers: Sequence[Answer]) -> None:
        """Show which server each process got."""
        table = _table("process", "server", "start_id", "after")
        for answer in answers:
            took = f"{answer.seconds * _MS_PER_S:.0f} ms"
            table.add_row(str(answer.pid), answer.url, answer.start_id or "unknown", took)
        self._indented(table)
        self.line(f"{len(answers)} processes, one server.", "green")

    def recall(self, rows: Sequence[Row], known_set: MultilingualSet, model: Any) -> None:
        """Show recall at each number of dimensions.

        Args:
            rows: What was measured.
            known_set: What it was measured on.
            model: What emberd knows of the model: ``Settings.known``.
        """
        sizes = f"{len(known_set.questions)} queries, {len(known_set.passages)} passages"
        self.step(f"Recall: {sizes}, {len(known_set.languages) - 1} languages and code")
        if not model.matryoshka:
            self.line(
                f"{model.name} was not trained to be cut: its shorter vectors are shown to see "
                f"what that costs."
            )
        columns = [f"as {role}, @{rank}" for role in ("query", "document") for rank in RANKS]
        table = _table("dimensions", *columns)
        for row in rows:
            shares = (f"{share:.1%}" for share in (*row.as_queries, *row.as_documents))
            table.add_row(str(row.dimensions), *shares)
        for column in table.columns:
            column.justify = "right"
        self._indented(table)

    def ending(self, server: Server) -> None:
        """Show how long the server stays, and how to see and stop it."""
        self._console.print()
        self._console.print(Text(f"{_lifetime(server)} `emberd status` shows it."))

    def _indented(self, content: Text | Table) -> None:
        self._console.print(Padding(content, _INDENT, expand=False))


def _lifetime(server: Server) -> str:
    if server.origin != "own":
        return "emberd did not start this server and will not stop it."
    (timeout,) = (s.idle_timeout for s in Manager().status() if s.start_id == server.start_id)
    if timeout is None:
        return "The server runs until `emberd stop`."
    minutes = timeout / _S_PER_MIN
    return f"The server stops {minutes:g} minutes after its last use, or by `emberd stop`."


def _truncated(text: str, columns: int) -> Text:
    truncated = Text(" ".join(text.split()))
    truncated.truncate(max(columns, _MIN_COLUMNS), overflow="ellipsis")
    return truncated


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for name in columns:
        table.add_column(name, no_wrap=True)
    return table
