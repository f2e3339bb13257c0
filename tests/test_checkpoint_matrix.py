"""The table of checkpoints in the documentation, and what is refused without any weights."""

from __future__ import annotations

from typing import Final

from checkpoint_matrix import ALL, ENGINES, Checkpoint
from docs_table import DocsTable

_TABLE: Final = DocsTable(
    "models.md",
    "the checkpoints",
    (
        "architecture",
        "files and tokenizer",
        "`transformers`",
        "`sglang`",
        "if it were served",
    ),
)
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
    """To write it: PYTHONPATH=tests python -c 'import test_checkpoint_matrix as t; t.write()'.

    ``tests/sglang/test_checkpoints.py`` holds what the table says.
    """
    assert _TABLE.has(map(_row, ALL))


def write() -> None:
    """Write the table of the documentation."""
    _TABLE.write(map(_row, ALL))


def _row(checkpoint: Checkpoint) -> tuple[str, ...]:
    return (
        f"`{checkpoint.architecture}`",
        checkpoint.says,
        *(_outcome(checkpoint, engine) for engine in ENGINES),
        _SHOWN[checkpoint.shown],
    )


def _outcome(checkpoint: Checkpoint, engine: str) -> str:
    if (reason := checkpoint.refused.get(engine)) is not None:
        return f"rejected: {reason}"
    return "served" if engine in checkpoint.like else "equal"
