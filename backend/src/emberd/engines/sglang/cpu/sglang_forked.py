"""Runs SGLang's server on the CPU, with forked processes.

``python -m sglang_forked sglang.launch_server ARGUMENTS``

SGLang starts its scheduler and its detokenizer as new interpreters, and each of them imports SGLang
again, which takes most of a start. On a GPU they cannot be forked, because a process that was
forked after the initialisation of CUDA cannot use it. On the CPU nothing prevents it, and the main
process has imported everything that they need.

Only servers on the CPU have it on their path. SGLang's interpreter loads it, so it imports nothing
of emberd.
"""  # noqa: INP001 - a program that is found through PYTHONPATH

from __future__ import annotations

import gc
import multiprocessing
import runpy
import sys

_set_start_method = multiprocessing.set_start_method


def _fork_instead(method: str | None, force: bool = False) -> None:
    """Set another start method than SGLang's; it calls this when all its imports are done."""
    # The objects of the imports stay, so collections need not look at them, in any process.
    gc.freeze()
    gc.enable()
    _set_start_method("fork" if method == "spawn" else method, force)


if __name__ == "__main__":
    # Imports create many objects and no garbage: collections would take a sixth of their time.
    gc.disable()
    multiprocessing.set_start_method = _fork_instead
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
