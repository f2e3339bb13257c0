"""Options of an installed SGLang, read from its source in both layouts."""

from __future__ import annotations

from pathlib import Path

import pytest

from emberd.engines.sglang.support import known_options

CALLS = """
class ServerArgs:
    host: str = "127.0.0.1"

    @staticmethod
    def add_cli_args(parser):
        parser.add_argument("--model-path", "--model", type=str, help="--no-option-at-all")
        parser.add_argument("--is-embedding", action="store_true")
"""
RECORD = """
class ServerArgs:
    host: A[str, "The host."] = "127.0.0.1"
    hidden: A[bool, Arg(help="x", no_cli=True)] = False
    shown: A[bool, Arg(help="x", no_cli=False)] = False
    plain: int = 1

    def add_cli_args(parser):
        parser.add_argument("--config", type=str)
"""
FIELDS = """
class Parallel(msgspec.Struct):
    tp_size: A[int, Arg(help="--not-this", aliases=["--tensor-parallel-size", "--tp"])] = 1
    join_mode: Annotated[Optional[str], Arg(cli_name="--elastic-join-mode")] = None
    derived = Derived(doc="x")
"""
OTHER = "class Other:\n    field: A[int, 'x'] = 1\n"


def packages(root: Path, main: str, **groups: str) -> str:
    srt = root / "sglang" / "srt"
    for name, text in {"server_args.py": main, **groups}.items():
        path = srt / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return str(root)


def test_options_that_are_added_by_calls_are_found(tmp_path: Path) -> None:
    assert known_options(packages(tmp_path, CALLS)) == frozenset(
        {"--model-path", "--model", "--is-embedding"}
    )


def test_options_that_are_fields_of_the_record_are_found(tmp_path: Path) -> None:
    assert known_options(packages(tmp_path, RECORD)) == frozenset({"--host", "--shown", "--config"})


def test_options_that_are_fields_of_groups_are_found(tmp_path: Path) -> None:
    groups = {"arg_groups/fields/parallel.py": FIELDS, "arg_groups/hook.py": OTHER}
    assert known_options(packages(tmp_path, "", **groups)) == frozenset(
        {"--tp-size", "--tensor-parallel-size", "--tp", "--elastic-join-mode"}
    )


@pytest.mark.parametrize("main", ["def broken(:", ""])
def test_source_without_options_is_unknown(tmp_path: Path, main: str) -> None:
    assert known_options(packages(tmp_path, main)) is None


def test_missing_sglang_is_unknown(tmp_path: Path) -> None:
    assert known_options(str(tmp_path)) is None
