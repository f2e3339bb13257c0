"""Folders in and out, and which files are read."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from pyarrow import dataset, parquet

import damage
from bulk_standin import is_right, rejects, request, run, run_request
from emberd.bulk.pipeline import BulkProgress
from emberd.bulk.request import find_inputs, is_data
from emberd.errors import SettingError


def _texts(folder: Path, **files: bytes) -> Path:
    for name, content in files.items():
        path = folder / name.replace("_", "/", 1).replace("__", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def test_each_file_of_a_folder_of_texts_is_a_row(tmp_path: Path) -> None:
    folder = _texts(
        tmp_path / "in",
        b_one__md=b"\xef\xbb\xbf# One\r\n",
        a_two__txt="zw\u00f6i".encode(),
        a_wrong__txt=b"caf\xe9",
        a_blank__txt=b" \n",
        a_picture__png=b"\x89PNG",
        a_sub_three__rst=b"three",
    )
    summary = run(folder, tmp_path / "out.parquet")
    assert (summary.embedded, summary.rejected) == (3, 2)
    table = parquet.read_table(tmp_path / "out.parquet")
    assert table["path"].to_pylist() == [
        f"{folder}/a/sub_three.rst",
        f"{folder}/a/two.txt",
        f"{folder}/b/one.md",
    ]
    assert table["text"].to_pylist() == ["three", "zwöi", "# One\r\n"]
    assert is_right(tmp_path / "out.parquet")
    blank, wrong = rejects(tmp_path / "out.parquet")
    assert blank["file"] == f"{folder}/a/blank.txt"
    assert wrong["reason"] == "The file is not UTF-8 at byte 3."
    assert find_inputs([str(folder)]).skipped == 1


@pytest.mark.parametrize("name", ["path", "text"])
def test_vectors_cannot_have_the_name_of_a_column_of_text_files(tmp_path: Path, name: str) -> None:
    folder = _texts(tmp_path / "in", a_one__md=b"one")
    with pytest.raises(SettingError, match=f"--embedding-column '{name}' conflicts with a column"):
        run(folder, tmp_path / "out.parquet", embedding_column=name)
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_of_parts_is_a_data_set_for_all_who_read_parquet(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("".join(f'{{"text": "{n}"}}\n' for n in range(600)))
    run(tmp_path / "in.jsonl", tmp_path / "out")
    assert len(list((tmp_path / "out").iterdir())) == 3
    expected = [str(n) for n in range(600)]
    assert dataset.dataset(tmp_path / "out").to_table()["text"].to_pylist() == expected
    assert is_right(tmp_path / "out")


def test_parts_of_a_folder_are_linked_and_not_copied(tmp_path: Path) -> None:
    """While the output is assembled, each part has a second name in it."""
    folder = _texts(tmp_path / "in", **{f"a_{n}__md": b"text" for n in range(600)})
    links: set[int] = set()

    def watch(progress: BulkProgress) -> None:
        if progress.phase == "assembling":
            parts = (tmp_path / "out.parts").rglob("part-*.parquet")
            links.update(part.stat().st_nlink for part in parts)

    run_request(request(folder, tmp_path / "out"), watch=watch)
    assert max(links) == 2
    assert is_right(tmp_path / "out")


def test_without_hard_links_parts_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no hard links")

    monkeypatch.setattr("os.link", refuse)
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.md").write_text("a")
    run(tmp_path / "in", tmp_path / "out")
    assert is_right(tmp_path / "out")


def test_a_folder_that_holds_something_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "a"}')
    run(tmp_path / "in.jsonl", tmp_path / "out")
    with pytest.raises(SettingError, match="exists and is not empty"):
        run(tmp_path / "in.jsonl", tmp_path / "out")
    assert not (tmp_path / "out.parts").exists()
    (tmp_path / "empty").mkdir()
    run(tmp_path / "in.jsonl", tmp_path / "empty")
    assert is_right(tmp_path / "empty")


def test_an_array_says_which_rows_it_has(tmp_path: Path) -> None:
    texts = [f'{{"text": "{n}"}}' if n % 3 else "{}" for n in range(1, 700)]
    (tmp_path / "in.jsonl").write_text("\n".join(texts))
    run(tmp_path / "in.jsonl", tmp_path / "out.npy")
    rows = np.load(tmp_path / "out.rows.npy")
    assert (rows.dtype, np.load(tmp_path / "out.npy").dtype) == (np.int64, np.float32)
    assert rows.tolist() == [n - 1 for n in range(1, 700) if n % 3]
    run(tmp_path / "in.jsonl", tmp_path / "out.parquet")
    table = parquet.read_table(tmp_path / "out.parquet")
    assert np.array_equal(np.load(tmp_path / "out.npy"), np.stack(table["embedding"].to_numpy()))


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "contains no files. Files that can be read: .parquet"),
        ({"x_a__png": b"", "x_b__csv": b""}, "contains only .csv, .png. Files that can be read"),
        ({"x_a__md": b"", "x_b__jsonl": b""}, "several types of files: 1 .jsonl and 1 .md."),
    ],
)
def test_a_folder_that_cannot_be_read_is_refused(
    tmp_path: Path, files: dict[str, bytes], says: str
) -> None:
    (tmp_path / "in").mkdir()
    _texts(tmp_path / "in", **files)
    with pytest.raises(SettingError) as raised:
        find_inputs([str(tmp_path / "in")])
    assert says in str(raised.value)


def test_what_other_programs_leave_is_passed_over(tmp_path: Path) -> None:
    for name in ("_SUCCESS", ".part.parquet", "_metadata.parquet", "b.parquet", "a.parquet"):
        (tmp_path / name).touch()
    found = find_inputs([str(tmp_path)])
    assert ([path.name for path in found.files], found.skipped) == (["a.parquet", "b.parquet"], 0)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("x.PARQUET", True), ("x.jsonl.gz", True), ("x.ndjson", True), (".", True), ("x.md", False)],
)
def test_what_is_data_is_told_by_its_ending(name: str, expected: bool) -> None:
    assert is_data(name) is expected


def test_a_folder_inside_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.md").touch()
    place = os.open(tmp_path, os.O_RDONLY)
    # Deeper than paths can say: that stops root too, which permissions do not.
    for _ in range(20):
        os.mkdir("x" * 250, dir_fd=place)
        inner = os.open("x" * 250, os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = inner
    os.close(place)
    with pytest.raises(SettingError, match="cannot be read: File name too long"):
        find_inputs([str(tmp_path)])


def test_a_file_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    for names in (["a.jsonl", "./a.jsonl"], [".", "a.jsonl"], [".", "."]):
        with pytest.raises(SettingError, match="is in the input twice"):
            find_inputs([f"{tmp_path}/{name}" for name in names])


def test_a_name_that_is_empty_is_not_the_folder_here() -> None:
    with pytest.raises(SettingError, match="is empty"):
        find_inputs([""])


def test_what_is_no_file_in_a_folder_is_named_and_not_read(tmp_path: Path) -> None:
    folder = _texts(tmp_path / "in", a_one__md=b"one", a_two__md=b"two")
    os.mkfifo(folder / "a" / "pipe.md")
    (folder / "a" / "device.md").symlink_to("/dev/zero")
    damage.make_socket(folder / "a" / "socket.md")
    (folder / "a" / "up").symlink_to("..")  # a loop
    (folder / "a" / "loop.md").symlink_to("loop.md")
    found = find_inputs([str(folder)])
    assert [path.name for path in found.special] == ["device.md", "pipe.md", "socket.md"]
    summary = run(folder, tmp_path / "out.parquet")
    assert (summary.embedded, summary.rejected) == (2, 1)
    assert [row["file"] for row in rejects(tmp_path / "out.parquet")] == [f"{folder}/a/loop.md"]


@pytest.mark.parametrize("name", ["b.jsonl", "b.parquet"])
@pytest.mark.parametrize("target", ["nowhere", "itself"])
def test_link_of_data_that_leads_to_no_file_is_refused(
    tmp_path: Path, name: str, target: str
) -> None:
    (tmp_path / "in").mkdir()
    link = tmp_path / "in" / name
    link.symlink_to(name if target == "itself" else "nowhere")
    with pytest.raises(SettingError, match=name):
        find_inputs([str(tmp_path / "in")])
