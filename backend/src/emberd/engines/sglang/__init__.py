"""The engine for Qwen3-Embedding on a GPU: SGLang, in an environment of its own.

========================  ===========================================================
``engine``                what the rest of emberd sees: refusal, claims, plan
``flags``                 the words of the command, and why each is there
``geometry``, ``memory``  what a model needs of a card, and how it is shared out
``progress``              what a starting server is doing, from its log
``diagnosis``             why it died, from its log
``recognition``           servers that somebody else started
``cpu``                   what stands in for the kernels on a machine without a GPU
========================  ===========================================================
"""

from __future__ import annotations

from emberd.engines.sglang.engine import ENGINE

__all__ = ["ENGINE"]
