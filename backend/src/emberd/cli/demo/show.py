"""What the demo shows: for people, on a terminal as in a pipe."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Final

from rich.table import Table
from rich.text import Text

from emberd.catalog import Model
from emberd.cli import output, progress_bars, words
from emberd.cli.demo.crowd import Answer
from emberd.cli.demo.frameworks import Hit
from emberd.cli.demo.passages import Multilingual, Passage
from emberd.cli.demo.recall import PLACES, Row
from emberd.cli.up import NOT_QWEN, stay
from emberd.manager import Server
from emberd.settings import DEFAULT_MODEL, is_demo

_PIPED_COLUMNS: Final = 118
_SOURCE_COLUMNS: Final = 26
_LEFT_COLUMNS: Final = 56  # of what stands before a passage
_LEAST_COLUMNS: Final = 20
_INDENT: Final = (0, 0, 0, 3)
_MS_PER_S: Final = 1000


@dataclass(frozen=True, slots=True)
class Asked:
    """A question, and the id of its answer where that is known."""

    language: str
    text: str
    answer: str | None = None


class Show:
    """The demo's one screen, and the number of the step that is shown."""

    def __init__(self) -> None:
        """Write to stdout."""
        self._console = output.console(piped_columns=_PIPED_COLUMNS)
        self._step = 0

    def step(self, title: str) -> None:
        """Begin the next step."""
        self._step += 1
        self._console.print(Text(f"\n{self._step}. {title}", style="bold"))

    def line(self, text: str, style: str = "") -> None:
        """Write a line of the current step."""
        self._indented(Text(text, style=style))

    def busy(self, text: str) -> AbstractContextManager[Any]:
        """Show on a terminal that something takes a while."""
        return self._console.status(text) if self._console.is_terminal else nullcontext()

    @contextmanager
    def bar(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show how many of ``total`` passages are done, then how fast it went."""
        began_s = time.monotonic()
        with progress_bars.text_progress(
            self._console, shown=self._console.is_terminal
        ) as progress:
            task = progress.add_task(f"   {name}", total=total, unit="passages")
            yield lambda count: progress.advance(task, count)
        seconds = time.monotonic() - began_s
        done = words.counted(total, "passage")
        speed = f"{done} in {seconds:.1f} s, {total / seconds:.0f} passages/s"
        self.line(f"{name:<11} {speed}")

    def server(self, server: Server, model: str, why_not: str | None) -> None:
        """Show which server is used, and why."""
        endpoint = server.endpoint
        if why_not is not None:
            self.line(f"{DEFAULT_MODEL} cannot be served here, so emberd/demo is used.", "yellow")
            self.line(why_not, "dim")
        if is_demo(model):
            self.line(NOT_QWEN, "bold yellow")
        how = {"own": "started by this demo" if server.started else "it was running already"}
        self.line(f"{endpoint.base_url}: {how.get(server.origin, 'not started by emberd')}")
        self.line(f"{server.reason}.")
        self.line(
            f"{model}, {endpoint.dimensions} dimensions, start_id {server.start_id or 'unknown'}"
        )

    def hits(
        self,
        asked: Asked,
        found: tuple[Sequence[Hit], Sequence[Hit]],
        names: tuple[str, str],
        by_id: Mapping[str, Passage],
    ) -> None:
        """Show what both frameworks found, the first one's order leading."""
        language = f"[{asked.language}] " if asked.language else ""
        self.line(f"{language}{asked.text}", "bold cyan")
        table = _table(*names, "found in", "passage")
        others = {hit.id: hit.score for hit in found[1]}
        for hit in found[0]:
            passage = by_id[hit.id]
            table.add_row(
                f"{hit.score:.4f}",
                f"{others[hit.id]:.4f}" if hit.id in others else "-",
                _clipped(passage.source, _SOURCE_COLUMNS),
                _clipped(passage.text, self._console.width - _LEFT_COLUMNS),
                style="green" if hit.id == asked.answer else None,
            )
        self._indented(table)

    def crowd(self, answers: Sequence[Answer]) -> None:
        """Show which server each process got."""
        table = _table("process", "server", "start_id of its start", "after")
        for answer in answers:
            took = f"{answer.seconds * _MS_PER_S:.0f} ms"
            table.add_row(str(answer.pid), answer.url, answer.start_id or "unknown", took)
        self._indented(table)
        self.line(f"{len(answers)} processes, one server.", "green")

    def recall(self, rows: Sequence[Row], known_set: Multilingual, model: Model) -> None:
        """Show recall at each length of vectors."""
        sizes = f"{len(known_set.questions)} queries, {len(known_set.passages)} passages"
        self.step(f"Recall: {sizes}, {len(known_set.languages) - 1} languages and code")
        if not model.matryoshka:
            self.line(
                f"{model.name} was not trained to be cut: its shorter vectors are shown to see "
                f"what that costs."
            )
        embedded = [f"as {role}, @{place}" for role in ("query", "document") for place in PLACES]
        table = _table("dimensions", *embedded)
        for row in rows:
            shares = (f"{share:.1%}" for share in (*row.as_queries, *row.as_documents))
            table.add_row(str(row.dimensions), *shares)
        for column in table.columns:
            column.justify = "right"
        self._indented(table)

    def ending(self, server: Server) -> None:
        """Show what stays, and how to see and stop it."""
        self._console.print()
        self._console.print(Text(f"{stay(server)} `emberd status` shows it."))

    def _indented(self, content: Text | Table) -> None:
        from rich.padding import Padding

        self._console.print(Padding(content, _INDENT, expand=False))


def _clipped(text: str, columns: int) -> Text:
    clipped = Text(" ".join(text.split()))
    clipped.truncate(max(columns, _LEAST_COLUMNS), overflow="ellipsis")
    return clipped


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for name in columns:
        table.add_column(name, no_wrap=True)
    return table
