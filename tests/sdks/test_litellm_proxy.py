"""LiteLLM's proxy in front of a gateway, with the ``config.yaml`` of docs/integrations.md."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import openai
import pytest

from agents.recipes import QWEN_TEMPLATE
from emberd import Embedder, ServerMismatchError
from fake_server import QWEN
from gateway.conftest import Faked
from sdks.litellm_proxy import KEY, Proxy, proxy
from source_tree import ROOT

# The imports of the proxy take ten seconds of CPU time, and much longer on a busy machine.
pytestmark = pytest.mark.timeout(400)

SHORT: Final = "qwen3-embedding-0.6b"
_PAGE: Final = ROOT / "docs/integrations.md"
# Names of emberd's default model, under which emberd's own classes look for it.
_HIDDEN: Final = f"""
  - model_name: {QWEN}
    litellm_params:
      model: openai/{SHORT}:query
      api_base: os.environ/EMBERD_GATEWAY
      api_key: os.environ/EMBERD_GATEWAY_KEY
"""


def _config() -> str:
    """Return the file of the page, for the small model."""
    (found,) = re.findall(r"```yaml\n(model_list:.*?)```", _PAGE.read_text(), re.DOTALL)
    return str(found).replace("qwen3-embedding-4b", SHORT).replace("Qwen3-Embedding-4B", QWEN[5:])


def _gateway(faked: Faked) -> dict[str, str]:
    return {"EMBERD_GATEWAY": f"{faked.running.url}/v1", "EMBERD_GATEWAY_KEY": faked.running.key}


@pytest.fixture(scope="module")
def started(_faked: Faked, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """The proxy of the page."""
    with proxy(_config(), tmp_path_factory.mktemp("litellm"), **_gateway(_faked)) as found:
        yield found


@pytest.fixture
def client(started: Proxy) -> Iterator[openai.OpenAI]:
    """OpenAI's SDK, for the proxy."""
    with openai.OpenAI(base_url=f"{started.url}/v1", api_key=KEY) as found:
        yield found


def _direct(faked: Faked, **body: Any) -> Any:
    reply = faked.running.post(**body).json()
    return np.array([each["embedding"] for each in reply["data"]])


def test_the_names_of_the_page_have_the_vectors_and_prompts_of_the_gateway(
    faked: Faked, client: openai.OpenAI
) -> None:
    for name, suffix, prompt in (
        ("emberd-documents", "", "{text}"),
        ("emberd-queries", ":query", QWEN_TEMPLATE),
    ):
        before = len(faked.inputs())
        found = client.embeddings.create(model=name, input=["Zinc?", "Iron?"])
        sent = faked.inputs()[before:]
        assert sorted(sent) == [prompt.format(text=text) for text in ("Iron?", "Zinc?")]
        expected = _direct(faked, model=SHORT + suffix, input=["Zinc?", "Iron?"])
        np.testing.assert_allclose([each.embedding for each in found.data], expected, atol=1e-6)
        assert found.usage.prompt_tokens > 0


def test_dimensions_and_input_type_reach_the_gateway(faked: Faked, client: openai.OpenAI) -> None:
    before = len(faked.inputs())
    found = client.embeddings.create(
        model="emberd-documents",
        input=["Zinc?"],
        dimensions=64,
        extra_body={"input_type": "query"},
    )
    assert faked.inputs()[before:] == [QWEN_TEMPLATE.format(text="Zinc?")]
    expected = _direct(faked, model=f"{SHORT}:query", input=["Zinc?"], dimensions=64)
    np.testing.assert_allclose([found.data[0].embedding], expected, atol=1e-6)


def test_emberds_classes_get_the_vectors_of_the_server_through_the_name_for_them(
    faked: Faked, started: Proxy
) -> None:
    through = Embedder(QWEN, base_url=started.url, api_key=KEY)
    direct = Embedder(QWEN, base_url=faked.embedder.url)
    texts = ["a document", "another one"]
    np.testing.assert_allclose(
        through.embed_documents(texts), direct.embed_documents(texts), atol=1e-6
    )
    np.testing.assert_allclose(through.embed_query("Zinc?"), direct.embed_query("Zinc?"), atol=1e-6)


def test_emberds_classes_refuse_a_name_that_adds_a_prompt(faked: Faked, tmp_path: Path) -> None:
    config = f"model_list:{_HIDDEN}"
    with proxy(config, tmp_path, **_gateway(faked)) as hidden:
        for _ in range(2):  # the refusal does not close the route for others
            with pytest.raises(ServerMismatchError, match="gateway"):
                Embedder(QWEN, base_url=hidden.url, api_key=KEY).embed_query("Zinc?")
        with openai.OpenAI(base_url=f"{hidden.url}/v1", api_key=KEY) as client:
            found = client.embeddings.create(model=QWEN, input=["Zinc?"])
        expected = _direct(faked, model=f"{SHORT}:query", input=["Zinc?"])
        np.testing.assert_allclose([found.data[0].embedding], expected, atol=1e-6)
