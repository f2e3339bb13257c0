"""``emberd search``: what it finds, and that it embeds a text once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from command import Command
from emberd import Embedder, folder_search, folder_texts
from emberd.cli import search as search_command
from emberd.folder_search import SearchProgress
from fake_server import MODEL, FakeServer
from other_servers import Infinity

QUESTION = "where is the needle?"


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    for number in range(8):
        (folder / f"{number}.txt").write_text(f"note {number}\n")
    # The fake server gives a text the same vector, whatever its role.
    (folder / "found.md").write_text(f"\n\n{QUESTION}\n")
    return folder


@pytest.fixture
def search(home: Path, server: FakeServer) -> Command:
    return Command(home, {"EMBERD_BASE_URL": server.url, "EMBERD_MODEL": MODEL})


def _passages(server: FakeServer) -> list[str]:
    """Return the passages that were embedded; the verification sends other texts."""
    sent = [str(text) for texts in server.embedded for text in texts]
    return [text for text in sent if text.startswith(("note", "changed"))]


def test_the_best_passage_comes_first_with_its_file_and_line(search: Command, folder: Path) -> None:
    done = search("search", str(folder), QUESTION, "--top", "2")
    assert done.code == 0, done.err
    first, text, second, _ = done.out.splitlines()
    assert first == f"{folder / 'found.md'}:3  1.000"
    assert text.strip() == QUESTION
    assert second.startswith(str(folder))
    # The question has the vector of that passage here, so it was in the cache already.
    assert "9 files, 9 passages, 8 of them embedded now" in done.err


def test_only_what_changed_is_embedded_again(
    search: Command, folder: Path, server: FakeServer
) -> None:
    assert search("search", str(folder), QUESTION).code == 0
    assert len(_passages(server)) == 8
    (folder / "3.txt").write_text("changed\n")
    (folder / "4.txt").unlink()
    done = search("search", str(folder), "another question", "--top", "20", "--json")
    assert _passages(server)[8:] == ["changed"]
    assert "8 files, 8 passages, 1 of them embedded now" in done.err
    paths = [hit["path"] for hit in done.json["hits"]]
    assert len(paths) == 8
    assert str(folder / "4.txt") not in paths


def test_files_and_folders_can_be_excluded(search: Command, tmp_path: Path) -> None:
    for name in ("a.txt", "b.md", "old/c.txt", "new/old/d.txt", "new/e.min.js", "new/deep/f.txt"):
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_text(name)
    everything = {"a.txt", "b.md", "c.txt", "d.txt", "e.min.js", "f.txt"}

    def found(*patterns: str) -> set[str]:
        return {path.name for path in folder_texts.text_files(tmp_path / "tree", patterns)}

    for patterns, without in [
        ((), set()),
        (("*.txt",), {"a.txt", "c.txt", "d.txt", "f.txt"}),
        (("old",), {"c.txt", "d.txt"}),
        (("old/", "*.min.*"), {"c.txt", "d.txt", "e.min.js"}),
        (("/old",), {"c.txt"}),
        (("./old", ".//b.md"), {"c.txt", "b.md"}),
        (("new/*.txt",), {"d.txt", "f.txt"}),
        (("*/old/*", "nothing"), {"d.txt"}),
    ]:
        assert found(*patterns) == everything - without, patterns
    done = search(
        "search", str(tmp_path / "tree"), QUESTION, "--exclude", "old", "--exclude", "*.md"
    )
    assert done.code == 0, done.err
    assert "3 files, 3 passages" in done.err


def test_progress_is_reported_after_each_reply(server: FakeServer, folder: Path) -> None:
    sizes = [path.stat().st_size for path in folder.iterdir()]
    (folder / "00.txt").write_bytes(b"\0" * 1000)
    (folder / "zz.txt").write_bytes(b" " * (folder_texts.MOST_FILE_BYTES + 1))
    embedder = Embedder(MODEL, base_url=server.url, batch_size=2)
    seen: list[SearchProgress] = []
    _, last = folder_search.search(
        embedder, folder, QUESTION, 1, lambda progress: seen.append(replace(progress))
    )
    counts = [progress.passages for progress in seen]
    assert counts == sorted(counts)
    assert len({*counts}) >= 5  # nine passages, two in each request
    assert (counts[-1], last.passages) == (9, 9)
    # Files that are not searched would make the time left seem longer.
    assert {progress.all_bytes for progress in seen} == {last.all_bytes} == {sum(sizes)}
    parts = [progress.done_bytes for progress in seen]
    assert parts == sorted(parts)
    assert 0 < parts[0] < parts[-1] <= last.all_bytes


def test_time_left_is_that_of_the_last_minute() -> None:
    estimate = search_command._Estimate()

    def after(now_s: float, done_bytes: int) -> str:
        return estimate.after(now_s, SearchProgress(done_bytes=done_bytes, all_bytes=10_000))

    assert after(0, 0) == "; 0%"
    assert after(1, 4000) == "; 40%"  # the cache had them; too early to tell
    assert after(10, 4100) == "; 41%, about 14 s left"
    for now_s in range(11, 200):
        left = after(now_s, 4100 + 10 * (now_s - 10))
    assert left == "; 60%, about 6 min left"
    assert after(300, 10_000) == ""


@pytest.mark.parametrize(("context", "prompt", "passages"), [(512, "", 11), (256, "text: ", 17)])
def test_passages_are_short_enough_for_a_server_that_cannot_count_tokens(
    home: Path, folder: Path, context: int, prompt: str, passages: int
) -> None:
    paragraph = "seven words are in this line\n" * 30
    (folder / "long.txt").write_text(paragraph)
    model = folder.parent / "model"
    model.mkdir()
    (model / "config.json").write_text('{"hidden_size": 16}')
    (model / "sentence_bert_config.json").write_text(f'{{"max_seq_length": {context}}}')
    templates = {f"EMBERD_{role}_INSTRUCTION": prompt + "{text}" for role in ("QUERY", "DOCUMENT")}
    with Infinity(model=str(model), dimensions=16, context_tokens=context) as server:
        given = {"EMBERD_BASE_URL": server.url, "EMBERD_MODEL": str(model), **templates}
        done = Command(home, given)("search", str(folder), QUESTION)
    assert done.code == 0, done.err
    assert f"10 files, {passages} passages" in done.err
    assert "could not be embedded" not in done.err
    texts = [str(text).removeprefix(prompt) for texts in server.embedded for text in texts]
    assert "\n".join(text for text in texts if text.startswith("seven")) == paragraph.rstrip()


def test_the_reason_of_a_passage_that_cannot_be_embedded_is_printed(
    home: Path, folder: Path
) -> None:
    (folder / "bad.txt").write_text("a bad passage")
    with FakeServer(refuses="bad") as server:
        searching = Command(home, {"EMBERD_BASE_URL": server.url, "EMBERD_MODEL": MODEL})
        done = searching("search", str(folder), QUESTION)
    assert done.code == 0, done.err
    assert "1 passage could not be embedded" in done.err
    assert "It cannot be read" in done.err


def test_json_has_the_whole_passage(search: Command, folder: Path) -> None:
    found = search("search", str(folder), QUESTION, "-n", "1", "--json").json
    [hit] = found["hits"]
    assert found["question"] == QUESTION
    assert (hit["path"], hit["line"]) == (str(folder / "found.md"), 3)
    assert hit["text"] == QUESTION
    assert hit["score"] == pytest.approx(1, abs=1e-4)


def test_control_characters_of_a_file_do_not_reach_the_terminal(
    search: Command, folder: Path
) -> None:
    (folder / "found.md").write_text(f"{QUESTION}\n\x1b[31mred\x07\n")
    (folder / "name\x07.md").write_text("a note\n")
    done = search("search", str(folder), QUESTION, "--top", "20")
    assert "red" in done.out
    assert "\x1b" not in done.out
    assert "\x07" not in done.out


def test_files_that_are_not_text_are_counted(search: Command, folder: Path) -> None:
    (folder / "picture.png").write_bytes(b"\0\1")
    done = search("search", str(folder), QUESTION)
    assert done.code == 0
    assert "1 file not searched" in done.err


def test_an_empty_folder_has_no_passages(search: Command, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = search("search", str(tmp_path / "empty"), QUESTION)
    assert (done.code, done.out) == (0, "")
    assert "0 files, 0 passages" in done.err


@pytest.mark.parametrize("arguments", [("missing", "question"), (".", " ")])
def test_a_missing_folder_and_a_blank_question_are_usage_errors(
    search: Command, arguments: tuple[str, str], server: FakeServer
) -> None:
    done = search("search", *arguments)
    assert done.code == 2
    assert server.embedded == []
