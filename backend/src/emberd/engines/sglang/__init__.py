"""The engine for Qwen3-Embedding on a GPU: SGLang, in its own environment.

==============  ================================================================
``engine``      what the rest of emberd uses: availability, plan, log
``command``     the words of the command, why each is there, reserved options
``memory``      what a server takes of its device, and the figures for SGLang
``support``     supported GPUs, models and versions
``log_reader``  steps of a start, and why a server failed
``cpu``         a stand-in for the kernels on a machine without a GPU
==============  ================================================================

Known failures and how the log shows them are data: ``known_failures.toml``.
"""

from __future__ import annotations

from emberd.engines.sglang.engine import ENGINE

__all__ = ["ENGINE"]
