"""The engine for Qwen3-Embedding where SGLang cannot run: Hugging Face transformers.

Its server is our own (``emberd.serving``), run by the interpreter of an environment that has torch
and transformers, and no emberd.

=============  ==============================================================
``engine``     what the rest of emberd sees: refusal, claims, plan
``suiting``    which models, devices and memory it can serve with
``diagnosis``  what a start is doing, and why it failed, from its log
=============  ==============================================================
"""

from __future__ import annotations

from emberd.engines.transformers.engine import ENGINE

__all__ = ["ENGINE"]
