"""emberd's own share of a cold start of the real SGLang: before its start, and once it is ready.

Needs an installed engine: ``make engines``.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Final

import psutil
import pytest

import leftovers
from emberd import Embedder, probe
from emberd.verified_manager import Manager
from real.engines import HERE, python_of, run

_MAIN: Final = "sglang.launch_server"
_POLL_S: Final = 0.005


class Watch:
    """Sees when the engine's process begins and when it first says that it is ready."""

    def __init__(self, home: Path) -> None:
        self.began_s = self.ready_s = 0.0
        self._home = home
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (main := self._main()) is None:
            time.sleep(_POLL_S)
        # When it is seen, some 50 ms late: the kernel's own time of its start is exact to a second.
        self.began_s = time.time()
        command = main.cmdline()
        url = f"http://127.0.0.1:{command[command.index('--port') + 1]}"
        while not probe.is_ready(url):
            time.sleep(_POLL_S)
        self.ready_s = time.time()

    def _main(self) -> psutil.Process | None:
        found = leftovers.find([str(self._home)])
        return next((p for p in found if _MAIN in p.cmdline()), None)


@pytest.mark.timeout(600)
def test_emberds_share_of_a_cold_start(tmp_path: Path) -> None:
    model, home = tmp_path / "tiny", tmp_path / "home"
    run(python_of("sglang"), HERE / "make_tiny.py", str(model))
    manager = Manager(home)
    embedder = Embedder(model, engine="sglang", device="cpu", manager=manager)
    watch = Watch(home)
    asked_s = time.time()
    try:
        embedder.ensure()
        done_s = time.time()
    finally:
        manager.stop()
    before_s, after_s = watch.began_s - asked_s, done_s - watch.ready_s
    print(
        f"\n{'ensure to the engine process':<32}{1000 * before_s:8.0f} ms"
        f"\n{'engine ready to ensure done':<32}{1000 * after_s:8.0f} ms"
        f"\n{'emberd, together':<32}{1000 * (before_s + after_s):8.0f} ms"
        f"\n{'the engine itself':<32}{1000 * (watch.ready_s - watch.began_s):8.0f} ms"
    )
    assert before_s > 0
    assert watch.ready_s > watch.began_s
