"""The client: texts in, vectors out, through an endpoint.

``clients`` (one for threads, one for tasks) drive the same ``job``, which decides what to send next
from ``inputs``, ``batches``, ``lengths``, ``wire`` and ``vectors``; none of these sends anything.
``transport`` and ``loopback`` send, ``retry`` decides when again, ``limits`` bounds what is in
flight, ``coalesce`` puts the batches of concurrent calls into one request, and ``verify`` checks a
server before its first use. A reply is checked in ``wire`` (status, JSON, count, indices),
``lengths`` (model name) and ``vectors`` (dimensions, finite values, norm). No module is imported
here: a supervisor, which only verifies servers, needs neither numpy nor the openai SDK.
"""
