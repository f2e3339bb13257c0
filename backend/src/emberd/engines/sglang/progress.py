"""What a starting SGLang server is doing, read from its log.

The lines are those of SGLang 0.5.23, in the order in which a start writes them. Of a download
it shows nothing: it switches the hub's bars off, so the step stands still until the files are
there.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

_TAIL_CHARS: Final = 64 * 1024  # the line with all its settings is 20 KB long
_FIRST_STEP: Final = "importing SGLang"


class _Step(NamedTuple):
    mark: str
    says: str


_STEPS: Final = (
    _Step(r"Retrying in \d+s \[Retry (?P<retry>\d+)/(?P<retries>\d+)\]", "waiting for the hub"),
    _Step(r"server_args=", "starting the scheduler"),
    _Step(r"Init (?:parallel|torch distributed) begin", "preparing the device"),
    _Step(r"Using model weights format", "downloading the weights"),
    _Step(r"Fetching \d+ files: +(?P<percent>\d+)%", "downloading the weights"),
    _Step(r"\.safetensors: +(?P<size>\d+)%", "downloading the weights"),
    _Step(r"Load weight begin", "loading the weights"),
    _Step(
        r"(?:[Ll]oading .*?shards|Loading safetensors using .*?): +\d+% Completed \| "
        r"(?P<file>\d+)/(?P<files>\d+)",
        "loading the weights",
    ),
    _Step(r"Load weight end", "allocating the KV cache"),
    _Step(r"Memory pool end", "preparing the first batch"),
    _Step(r"Capture .*? begin", "capturing graphs"),
    _Step(r"Capturing [^|]*\|[^|]*\| +(?P<graph>\d+)/(?P<graphs>\d+)", "capturing graphs"),
    _Step(
        r"DeepGEMM warmup: [^|]*\|[^|]*\| +(?P<kernel>\d+)/(?P<kernels>\d+)", "compiling kernels"
    ),
    _Step(r"flashinfer\.jit: ", "compiling kernels"),
    _Step(r"max_total_num_tokens=", "opening its port"),
    _Step(r"Application startup complete", "warming up"),
    _Step(r"The server is fired up", "answering"),
)
_MARKS: Final = tuple((re.compile(step.mark), step.says) for step in _STEPS)
_FIGURES: Final = {
    "retry": "(retry {retry} of {retries})",
    "percent": "{percent} %",
    "size": "{size} %",
    "file": "({file} of {files} files)",
    "graph": "{graph}/{graphs}",
    "kernel": "{kernel}/{kernels}",
}


def progress(log: str) -> str:
    """Return what a starting server is doing, in a few words.

    Args:
        log: What it wrote since its start, or the end of that. Only the last 64 Ki characters
            are looked at: the function is called many times a second.
    """
    for line in reversed(log[-_TAIL_CHARS:].splitlines()):
        step = _step(line)
        if step is not None:
            return step
    return _FIRST_STEP


def _step(line: str) -> str | None:
    # From the last: a line that says two things says the later one in the start's order.
    for mark, says in reversed(_MARKS):
        if found := mark.search(line):
            return " ".join([says, *_figures(found)])
    return None


def _figures(found: re.Match[str]) -> list[str]:
    known = found.groupdict()
    return [form.format(**known) for name, form in _FIGURES.items() if known.get(name)]
