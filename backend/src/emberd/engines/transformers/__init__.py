"""The engine for Qwen3-Embedding where SGLang cannot run: Hugging Face transformers.

Its server is our own (``emberd.serving``). The interpreter of an environment that contains torch
and transformers, but not emberd, runs it.

==========  =======================================================
``engine``  what the rest of emberd uses: availability, plan, log
``compat``  which models, devices and memory it can serve with
==========  =======================================================
"""

from __future__ import annotations

from emberd.engines.transformers.engine import ENGINE

__all__ = ["ENGINE"]
