"""``emberd up`` on a machine with a GPU and nothing else: from the downloads to the server.

The GPUs, the hub and SGLang are fake; the installer, huggingface_hub, the terminal and the
processes are real.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pytest

import fake_sglang
import waiting
from emberd import Manager
from emberd.installs import RECIPES
from gpu_machine import CARDS, MODEL, Machine, hub, machine
from real import fake_hub
from real.fake_hub import Hub

__all__ = ["hub", "machine"]

VERSION: Final = RECIPES["sglang"].version
# What emberd computes from the size of the card, and passes to SGLang.
_PLANNED: Final = (
    *("--max-total-tokens", "--context-length", "--mem-fraction-static"),
    *("--chunked-prefill-size", "--max-prefill-tokens"),
)


def words(command: list[str]) -> dict[str, str]:
    """Return the options of a command with their values."""
    return {name: value for name, value in pairwise(command) if "--" in name}


def assert_was_started(machine: Machine, planned: dict[str, Any]) -> None:
    """Assert that the server runs with the command that the dry run had shown."""
    told = json.loads(machine.command_file.read_text())
    started, shown = words(told["command"]), words(planned["command"])
    assert {name: started[name] for name in _PLANNED} == {name: shown[name] for name in _PLANNED}
    assert planned["command"][0] == told["command"][0]
    assert started["--model-path"] == MODEL
    assert told["gpus"] == "GPU-aaaa"
    [status] = Manager(machine.home).status()
    assert (status.state.value, status.spec.model) == ("ready", MODEL)


@pytest.mark.parametrize("machine", CARDS, indirect=True, ids=lambda size: f"{size}-GB")
def test_each_card_gets_the_command_that_is_planned_for_it(
    machine: Machine, request: pytest.FixtureRequest
) -> None:
    dry = machine("up", "--dry-run", "--json")
    assert dry.code == 0, dry.err
    planned = dry.json
    card = CARDS[request.node.callspec.params["machine"]]
    assert any(card.name in reason["why"] for reason in planned["reasons"])
    done = machine("up", "--yes")
    assert done.code == 0, f"{done.out}\n{done.err}"
    assert "[Y/n]" not in done.err
    assert_was_started(machine, planned)


def test_from_nothing_to_the_servers_command(machine: Machine, hub: Hub) -> None:
    """Nothing is downloaded before it is confirmed, and again nothing once it is there."""
    weights = sum(map(len, hub.models[MODEL].values()))
    engine = RECIPES["sglang"]

    dry = machine("up", "--dry-run", "--json")
    assert dry.code == 0, dry.err
    planned = dry.json
    folder = machine.home.parent / "engines" / f"sglang-{VERSION}"
    assert planned["command"][0] == str(folder / "bin" / "python")
    sizes = {item["what"]: item["download_bytes"] for item in planned["missing"]}
    assert sizes == {"engine": engine.download_bytes, "weights": weights}
    assert [item["is_estimate"] for item in planned["missing"]] == [False, False]
    assert "4.8 GB" in machine("up", "--dry-run").out

    refused = machine("up")
    assert refused.code == 4
    assert refused.out == ""
    for fact in (f"sglang {VERSION}", "4.8 GB", MODEL, "--yes", "`emberd pull`"):
        assert fact in refused.err
    as_json = machine("up", "--json")
    assert as_json.json["error"]["kind"] == "DownloadNeededError"

    declined = machine.on_terminal("up", typed="n\n")
    assert declined.code == 4
    assert "4.8 GB" in declined.out
    assert str(folder) in declined.out
    assert machine.is_empty

    done = machine.on_terminal("up", typed="y\n")
    assert "[Y/n]" in done.out
    assert done.code == 0, f"{done.out}\n{done.err}"
    assert f"{MODEL} is served at http://127.0.0.1:" in done.out
    assert_was_started(machine, planned)

    again = machine("up")
    assert again.code == 0, "a running server needs no download"
    after = machine("up", "--dry-run", "--json").json
    assert after["missing"] == []
    assert after["command"][0] == planned["command"][0]


def test_pull_downloads_all_that_up_needs(machine: Machine, hub: Hub) -> None:
    pulled = machine("pull", "--json")
    assert pulled.code == 0, pulled.err
    content = pulled.json
    assert (content["engine"]["name"], content["engine"]["version"]) == ("sglang", VERSION)
    assert content["model"]["commit"] == fake_hub.COMMIT
    assert content["model"]["bytes"] == sum(map(len, hub.models[MODEL].values()))
    assert Path(content["model"]["folder"], "model.safetensors.index.json").is_file()
    transfers = list(hub.transfers)
    repeated = machine("pull", "--device", "cuda", "--engine", "sglang")
    assert repeated.code == 0
    assert repeated.out.endswith("emberd up --engine sglang --device cuda\n")
    assert hub.transfers == transfers, "the second time, only hashes are compared"

    started = machine("up")
    assert started.code == 0, started.err


def test_pull_goes_on_where_it_was_killed(machine: Machine, hub: Hub) -> None:
    name = "model-00002-of-00002.safetensors"
    hub.models[MODEL][name] = fake_hub.weights(30_000_000, 5)
    hub.hold = name
    with machine.begin("pull", text=True) as process:
        assert hub.halfway.wait(60)
        blobs = machine.home.parent / "hub" / "models--Qwen--Qwen3-Embedding-4B" / "blobs"
        # The client writes 10 MB at a time.
        waiting.until(
            lambda: any(p.stat().st_size >= 10_000_000 for p in blobs.glob("*.incomplete"))
        )
        assert process.poll() is None
        process.kill()
    hub.hold = ""
    hub.held.set()
    hub.ranges.clear()
    assert machine("pull").code == 0
    [(resumed, wanted)] = hub.ranges
    assert (resumed, wanted) == (name, "bytes=10485760-")


def test_pull_deletes_a_file_with_a_wrong_hash(machine: Machine, hub: Hub) -> None:
    name = "model-00001-of-00002.safetensors"
    content = hub.models[MODEL][name]
    hub.tampered[name] = content[:-1] + bytes([content[-1] ^ 1])
    done = machine("pull", "--json")
    assert done.code == 1
    assert done.json["error"]["kind"] == "HubError"
    assert f"{name} was damaged" in done.err
    dry = machine("up", "--dry-run", "--json").json
    assert [item["what"] for item in dry["missing"]] == ["weights"]
    hub.tampered.clear()
    assert machine("pull").code == 0


def test_a_hub_that_does_not_answer_leaves_an_estimate(machine: Machine, hub: Hub) -> None:
    hub.models = {}
    dry = machine("up", "--dry-run", "--json").json
    weights = dry["missing"][1]
    assert (weights["download_bytes"], weights["is_estimate"]) == (8_000_000_000, True)
    refused = machine("up", "--yes")
    assert refused.code == 1
    assert machine.is_empty, "the engine is not installed in vain"


def test_the_error_repeats_what_was_asked_for(machine: Machine) -> None:
    refused = machine("up", "Qwen/Qwen3-Embedding-0.6B", "--engine", "sglang", "--revision", "v1")
    assert refused.code == 4
    options = "Qwen/Qwen3-Embedding-0.6B --engine sglang --revision v1"
    assert f"`emberd pull {options}`" in refused.err
    assert "about 1.2 GB" in refused.err, "the hub does not have it"


def test_auto_install_allows_the_downloads_of_up(machine: Machine) -> None:
    machine.more["EMBERD_AUTO_INSTALL"] = "1"
    assert machine("up").code == 0


def test_pull_for_another_machine_needs_the_name_of_an_engine(machine: Machine) -> None:
    folder = machine.home.parent
    fake_sglang.write_nvml(folder / "modules", [], folder / "taken")
    refused = machine("pull")
    assert refused.code == 4
    assert "--engine sglang" in refused.err
    assert machine.is_empty
    done = machine("pull", "--engine", "sglang", "--json")
    assert done.code == 0
    assert done.json["engine"]["name"] == "sglang"


def test_pull_refuses_what_the_engine_cannot_serve(machine: Machine, hub: Hub) -> None:
    config = {"architectures": ["Qwen3ForCausalLM"], "is_causal": False}
    hub.models = {
        "owner/other": fake_hub.tiny_model() | {"config.json": json.dumps(config).encode()}
    }
    refused = machine("pull", "owner/other")
    assert refused.code == 4
    assert hub.transfers == []


@pytest.mark.parametrize("what", ["a folder", "emberd/demo"])
def test_pull_of_a_model_that_is_here_downloads_no_weights(
    machine: Machine, hub: Hub, what: str
) -> None:
    name = what
    if what == "a folder":
        folder = machine.home.parent / "Qwen3-Embedding-4B"
        for file, content in hub.models[MODEL].items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(content)
        name = str(folder)
    done = machine("pull", name, "--json")
    assert done.code == 0, done.err
    assert done.json["model"] is None
    assert hub.requests == []


def test_a_model_of_modelscope_is_started_by_its_folder(machine: Machine, hub: Hub) -> None:
    root = machine.home.parent
    folder = root / "modelscope" / "Qwen3-Embedding-4B"
    for file, content in hub.models[MODEL].items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)
    program = f"def snapshot_download(model, revision, allow_patterns): return {str(folder)!r}"
    (root / "modules" / "modelscope.py").write_text(program)
    done = machine("pull", "--source", "modelscope")
    assert done.code == 0, done.err
    assert done.out.endswith(f"Next: emberd up {folder}\n")
    assert hub.requests == []


def test_an_unknown_source_is_wrong_usage(machine: Machine) -> None:
    done = machine("pull", "--source", "elsewhere")
    assert done.code == 2
    assert "modelscope" in done.err
