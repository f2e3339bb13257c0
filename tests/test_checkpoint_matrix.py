"""The table of checkpoints in the documentation, and what is refused without any weights."""

from __future__ import annotations

from typing import Final

from checkpoint_matrix import ALL, ENGINES, Checkpoint
from test_catalog import PAGE

_BEGIN: Final = "<!-- the checkpoints -->"
_END: Final = "<!-- end of the checkpoints -->"
_SHOWN: Final = {
    "": "",
    "differs": "another vector",
    "norm": "a vector of another length",
    "batch": "vectors that depend on the batch",
    "start": "no vector: SGLang ends with an error",
    "fails": "no vector: the library does not load it either",
    "same": "the same vector",
}


def test_there_are_thirty_checkpoints_and_each_is_another() -> None:
    assert len(ALL) >= 30
    assert len({(each.architecture, each.says) for each in ALL}) == len(ALL)
    assert all(bool(each.shown) == (set(each.refused) == set(ENGINES)) for each in ALL)


def test_the_table_of_checkpoints_is_made_of_the_matrix() -> None:
    """To write it anew: PYTHONPATH=tests python -c 'import test_checkpoint_matrix as t; t.write()'.

    ``tests/sglang/test_checkpoints.py`` holds what the table says.
    """
    text = PAGE.read_text(encoding="utf-8")
    assert _BEGIN + text.partition(_BEGIN)[2].partition(_END)[0] + _END == _table()


def write() -> None:
    """Write the table of the documentation."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(_BEGIN)
    PAGE.write_text(before + _table() + rest.partition(_END)[2], encoding="utf-8")


def _table() -> str:
    head = (
        "| architecture | files and tokenizer | `transformers` | `sglang` | if it were served |\n"
        "| --- | --- | --- | --- | --- |\n"
    )
    return f"{_BEGIN}\n{head}{''.join(map(_row, ALL))}{_END}"


def _row(checkpoint: Checkpoint) -> str:
    cells = (
        f"`{checkpoint.architecture}`",
        checkpoint.says,
        *(_outcome(checkpoint, engine) for engine in ENGINES),
        _SHOWN[checkpoint.shown],
    )
    return f"| {' | '.join(cells)} |\n"


def _outcome(checkpoint: Checkpoint, engine: str) -> str:
    if (reason := checkpoint.refused.get(engine)) is not None:
        return f"rejected: {reason}"
    return "served" if engine in checkpoint.like else "equal"
