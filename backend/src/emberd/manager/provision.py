"""Which engine is to serve, and its installation where the user asked for that beforehand."""

from __future__ import annotations

import time
from collections.abc import Sequence

from emberd import engines
from emberd.env import Places
from emberd.errors import NoEngineError
from emberd.manager.server import OnProgress, Progress
from emberd.settings import ServerSpec


def choose(spec: ServerSpec, refusals: Sequence[str]) -> engines.Engine:
    """Return the engine that is to serve ``spec``.

    Args:
        spec: What is wanted.
        refusals: Why none of the running servers will do.

    Raises:
        NoEngineError: None can serve it on this machine.
    """
    try:
        return engines.choose(spec)
    except NoEngineError as error:
        if not refusals:
            raise
        seen = "\n".join(f"  {refusal}" for refusal in refusals)
        raise NoEngineError(f"{error}\nRunning servers that do not fit:\n{seen}") from None


def install(name: str, on_progress: OnProgress | None) -> float:
    """Install an engine's environment; return how long it took, in seconds.

    Who asks at the same time waits for this one.

    Raises:
        InstallError: It cannot be installed.
    """
    began_s = time.monotonic()

    def tell(text: str) -> None:
        if on_progress is not None:
            on_progress(Progress(text, time.monotonic() - began_s, log_path=""))

    # Imported late: most processes never install anything.
    from emberd import installs

    installs.install(name, Places.resolve(), tell)
    return time.monotonic() - began_s
