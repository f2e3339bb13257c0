"""Texts in, vectors out, against a URL.

Everything that decides is in modules without input or output (``texts``, ``batches``, ``replies``,
``vectors``, ``protocol``, ``retry``, ``job``); ``transport`` sends, and ``sync`` and ``aio`` drive
the same job with threads and with tasks. Nothing is imported here: a supervisor, which only
verifies servers, needs neither numpy nor the openai SDK.
"""
