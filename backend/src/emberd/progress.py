"""A progress bar while documents are embedded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from emberd.client.inputs import as_list
from emberd.settings import Settings


@contextmanager
def shown(
    settings: Settings, texts: Iterable[str]
) -> Iterator[tuple[Iterable[str], Callable[[int], None] | None]]:
    """Show a bar in this block where the settings ask for one.

    Yields:
        The texts, as a list where they are counted, and what is to be called with how many are
        done.

    Raises:
        TextError: They cannot be several texts.
    """
    if not settings.show_progress:
        yield texts, None
        return
    counted = as_list(texts)
    # Imported only where there is a bar to show.
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("embedding", total=len(counted))
        yield counted, lambda finished: bar.update(task, completed=finished)
