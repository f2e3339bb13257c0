"""How a folder is read for a search: which files, which text, and how it is divided."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

import other_user
from emberd.folder_texts import (
    MOST_FILE_BYTES,
    PASSAGE_BYTES,
    passages,
    read_text,
    text_files,
)


def test_hidden_files_links_and_special_files_are_left_out(tmp_path: Path) -> None:
    for name in ("b.txt", "a/c.txt", ".hidden", ".git/config"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("text")
    (tmp_path / "link.txt").symlink_to(tmp_path / "b.txt")
    os.mkfifo(tmp_path / "pipe")
    assert [str(path.relative_to(tmp_path)) for path in text_files(tmp_path)] == [
        "b.txt",
        "a/c.txt",
    ]


@pytest.mark.parametrize(
    "content",
    [b"PNG\0\1\2", b"x" * (MOST_FILE_BYTES + 1)],
    ids=["binary", "too large"],
)
def test_what_is_not_text_is_not_read(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.txt"
    path.write_bytes(content)
    assert read_text(path) is None


def test_a_file_that_became_a_pipe_or_a_link_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/etc/hostname")
    assert read_text(tmp_path / "pipe") is None
    assert read_text(tmp_path / "link") is None
    assert read_text(tmp_path / "missing") is None


def test_bytes_that_are_not_utf8_do_not_hide_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes("caf\xe9 and tea".encode("latin-1"))
    assert read_text(path) == "caf\N{REPLACEMENT CHARACTER} and tea"


def test_html_gives_the_visible_text_on_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(
        "<html><head><title>title</title>\n<script>no()</script><style>no</style>\n<body>\n"
        "<p>one &amp; <b>two</b>&#10;x&NewLine;y\nthree</p>\n</body></html>"
    )
    text = read_text(path)
    assert text is not None
    assert text.split("\n") == ["title", "", "", "one & two x y", "three", ""]


@pytest.mark.parametrize("rest", ["<!-- ", "<script>", "<a title='", "<", "<a " * 5])
def test_damaged_html_is_read_in_linear_time(tmp_path: Path, rest: str) -> None:
    path = tmp_path / "page.html"
    path.write_text(f"<p>one</p>\n{rest * (3_000_000 // len(rest))}")
    begin_s = time.process_time()
    text = read_text(path)
    assert time.process_time() - begin_s < 5
    assert text is not None
    assert text.startswith("one\n")


def test_tags_and_comments_of_several_lines_keep_the_numbers_of_lines(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("a<br\nclass='x'>b <!-- one\ntwo --> c\n<SCRIPT>x\n</SCRIPT >1 < 2 &lt; 3")
    assert (read_text(path) or "").split("\n") == ["a", "b", "c", "", "1 < 2 < 3"]


@other_user.needs_root
def test_folders_that_cannot_be_read_are_skipped_and_counted(tmp_path: Path) -> None:
    for closed, mode in (("listed", 0o744), ("closed", 0o700)):
        (tmp_path / closed).mkdir()
        (tmp_path / closed / "a.txt").write_text("text")
        (tmp_path / closed).chmod(mode)
    other_user.reachable(tmp_path).chmod(0o755)

    def read() -> list[tuple[str, str | None]]:
        return [(path.name, read_text(path)) for path in text_files(tmp_path)]

    found = other_user.run_as(other_user.OTHER, read)
    assert found == [("a.txt", None), ("closed", None)]


def test_no_passage_is_blank_or_begins_or_ends_with_white_space() -> None:
    """A server that strips texts would be sent none of them."""
    block = "\n".join(["    indented"] * PASSAGE_BYTES)
    found = [text for _, text in passages(f"{' ' * 3 * PASSAGE_BYTES}far \n{block}")]
    assert found[0].startswith("far")
    assert len(found) > 10
    assert [text for text in found if not text or text != text.strip()] == []


def test_lines_are_counted_as_editors_do() -> None:
    [(line, text)] = passages("\x0c\n\x0b\u2028\x85\r\n\r\nhere")
    assert (line, text) == (4, "here")


def test_paragraphs_stay_together_and_have_the_number_of_their_first_line() -> None:
    paragraph = "x" * (PASSAGE_BYTES // 3)
    text = f"\n\n{paragraph}\n{paragraph}\n\n{paragraph}\n\n\n"
    assert list(passages(text)) == [(3, f"{paragraph}\n{paragraph}"), (6, paragraph)]


def test_short_paragraphs_share_a_passage() -> None:
    assert list(passages("title\n\none\n\ntwo\n")) == [(1, "title\n\none\n\ntwo")]


def test_a_long_line_is_divided_between_characters() -> None:
    found = list(passages("é" * PASSAGE_BYTES))
    assert len(found) > 1
    assert {line for line, _ in found} == {1}
    assert "".join(text for _, text in found) == "é" * PASSAGE_BYTES


@pytest.mark.parametrize("seed", range(50))
def test_no_text_is_lost_and_no_passage_is_blank_or_too_long(seed: int) -> None:
    chance = random.Random(seed)
    text = "".join(chance.choices("ab é漢\n\t ", k=chance.randrange(4000)))
    found = list(passages(text))
    assert "".join("".join(part.split()) for _, part in found) == "".join(text.split())
    assert all(part.strip() and len(part.encode()) <= PASSAGE_BYTES for _, part in found)
    lines = text.split("\n")
    for number, part in found:
        assert part.split("\n")[0].strip() in lines[number - 1]
