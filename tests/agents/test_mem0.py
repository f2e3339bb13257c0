"""The recipe for mem0."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from agents.recipes import BOATS, BREAD, QUESTION, Recipe, Sent

# qdrant-client 1.20 asks SQLite once how it was built, and leaves that connection open; Python 3.13
# is the first to say so.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed database in:ResourceWarning")


@pytest.fixture(scope="session", autouse=True)
def _own_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep mem0 from the user's home and from reporting; it reads both at its import."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEM0_DIR", str(tmp_path_factory.mktemp("mem0")))
        patch.setenv("MEM0_TELEMETRY", "False")
        yield


@pytest.fixture
def made(recipe: Recipe) -> Iterator[Callable[[], Any]]:
    """Run the recipe; what it opened is closed at the end."""
    modules: list[ModuleType] = []

    def run() -> ModuleType:
        modules.append(recipe("mem0"))
        return modules[-1]

    yield run
    for module in modules:
        module.memory.vector_store.client.close()
        module.memory.close()


def test_the_recipe_finds_the_memory(
    made: Callable[[], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    made()
    assert capsys.readouterr().out == f"['{BREAD}']\n"


def test_memories_and_questions_get_one_template(
    made: Callable[[], Any], sent_to_demo: Sent
) -> None:
    made()
    assert sent_to_demo()[-3:] == [f"passage: {text}" for text in (BREAD, BOATS, QUESTION)]


def test_qwen_gets_them_as_they_are(made: Callable[[], Any], sent_to_qwen: Sent) -> None:
    made()
    assert sent_to_qwen()[-3:] == [BREAD, BOATS, QUESTION]


def test_what_a_chat_model_makes_of_a_talk_is_found(made: Callable[[], Any]) -> None:
    module = made()
    fact = "Ana has moved to a village in the Alps."
    module.model.responses = [json.dumps({"memory": [{"text": fact}]})]
    module.memory.add("I'm up in the mountains now.", user_id="ana")
    found = module.memory.search("Where does Ana live?", filters={"user_id": "ana"}, top_k=1)
    assert found["results"][0]["memory"] == fact


def test_without_symmetric_memories_would_be_stored_as_questions(
    made: Callable[[], Any], sent_to_demo: Sent
) -> None:
    """The reason for ``symmetric``: mem0 asks for the vector of a query in all cases."""
    module = made()
    module.memory.embedding_model.langchain_model = type(module.embeddings)()
    sent_to_demo()
    module.memory.add("Ana plays chess.", user_id="ana", infer=False)
    assert sent_to_demo()[-1] == "query: Ana plays chess."
