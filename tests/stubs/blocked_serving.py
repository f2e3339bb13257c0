"""The serving process with an encoder whose loading never ends, or which cannot load."""

from __future__ import annotations

import sys

from emberd.errors import StartError
from emberd.serving import __main__ as process
from fake_encoder import FakeEncoder


def main() -> int:
    """Serve; the first argument is the fault."""
    fault = sys.argv.pop(1)
    fake = FakeEncoder()
    if fault == "hangs":
        fake.loaded.clear()
    else:
        fake.load_error = StartError("the weights are not there", advice="Fetch them.")
    process.create_encoder = lambda *_: fake
    return process.main()


if __name__ == "__main__":
    sys.exit(main())
