"""The words of SGLang's command, and what it never contains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from emberd.engines import Launch
from emberd.engines.model_shape import KNOWN
from emberd.engines.sglang import memory
from emberd.engines.sglang.command import (
    CPU,
    Flag,
    check_arguments,
    config_text,
    flags,
    variables,
)
from emberd.engines.sglang.memory import NO_CHUNKS, MemoryPlan, plan_memory
from emberd.errors import StartError
from emberd.settings import ServerSpec, StartOptions
from memory_cards import card

PLAN = plan_memory(card(24), KNOWN["Qwen/Qwen3-Embedding-4B"], None)


STORE = "/state/of/it/torch-store"
HOME = "/home-of-it"


def chosen(
    memory: MemoryPlan | None = PLAN, *, tp_size: int = 1, dp_size: int = 1, **wishes: Any
) -> tuple[Flag, ...]:
    options = StartOptions(tp_size=tp_size, dp_size=dp_size)
    launch = Launch(31_234, "key", "stamp", "/state", options, home="/home-of-it")
    return flags(ServerSpec(**wishes), launch, memory, "/state/config")


def said(memory: MemoryPlan | None = PLAN, **given: Any) -> dict[str, str]:
    return {flag.words[0]: " ".join(flag.words[1:]) for flag in chosen(memory, **given)}


def test_a_gpu_server_embeds_on_loopback_with_explicit_memory() -> None:
    assert said() == {
        "--model-path": "Qwen/Qwen3-Embedding-4B",
        "--dtype": "bfloat16",
        "--host": "127.0.0.1",
        "--served-model-name": "Qwen/Qwen3-Embedding-4B",
        "--weight-version": "stamp",
        "--config": "/state/config",
        "--is-embedding": "",
        "--disable-radix-cache": "",
        "--enable-tokenizer-batch-encode": "",
        "--json-model-override-args": '{"is_matryoshka": true}',
        "--context-length": "32768",
        "--max-total-tokens": "40960",
        "--mem-fraction-static": f"{PLAN.fraction:.3f}",
        "--chunked-prefill-size": "4096",
        "--max-prefill-tokens": "4096",
        "--device": "cuda",
        "--sleep-on-idle": "",
        "--enable-metrics": "",
        "--gc-threshold": "20000 50 100",
        "--log-level": "info",
        "--uvicorn-access-log-exclude-prefixes": "/",
    }


COMPILED = ("TORCHINDUCTOR_CACHE_DIR", "CUTE_DSL_CACHE_DIR", "QUACK_CACHE_DIR")


def test_compiled_kernels_are_kept_in_the_home() -> None:
    """By default these caches are in the temporary folder, which ends with the server."""
    given = variables({}, (card(24),), STORE, HOME)
    folders = {Path(given[name][0]) for name in COMPILED}
    assert len(folders) == len(COMPILED)
    assert {folder.parent for folder in folders} == {Path(HOME)}


@pytest.mark.parametrize("name", COMPILED)
def test_a_cache_that_the_user_has_chosen_is_used(name: str) -> None:
    assert name not in variables({name: "/my/cache"}, (card(24),), STORE, HOME)


@pytest.mark.parametrize(
    ("given", "option", "value"),
    [
        ({"revision": "abc"}, "--revision", "abc"),
        ({"quantization": "fp8"}, "--quantization", "fp8"),
        ({"tp_size": 2}, "--tp-size", "2"),
        ({"dp_size": 4}, "--dp-size", "4"),
    ],
)
def test_option_adds_only_its_own_words(given: dict[str, Any], option: str, value: str) -> None:
    assert said(**given) == said() | {option: value}


def test_cpu_server_uses_only_torch_and_a_long_watchdog() -> None:
    words_of_cpu = said(device=CPU)
    assert words_of_cpu["--attention-backend"] == "torch_native"
    assert int(words_of_cpu["--watchdog-timeout"]) > 300
    assert "--tp-size" not in words_of_cpu


def test_an_encoder_is_read_in_one_piece_within_an_explicit_fraction() -> None:
    encoder = replace(KNOWN["Qwen/Qwen3-Embedding-0.6B"], architecture="BertModel")
    given = said(plan_memory(card(24), encoder, None))
    assert given["--chunked-prefill-size"] == str(NO_CHUNKS)
    assert 0 < float(given["--mem-fraction-static"]) < 1


def test_unknown_model_gets_only_the_requested_context() -> None:
    assert not {"--max-total-tokens", "--mem-fraction-static"} & set(said(None))
    assert said(None, context_tokens=512)["--context-length"] == "512"


def test_fast_path_of_hopper_is_not_used() -> None:
    everything = {word for flag in chosen() for word in flag.words}
    assert "--prefill-only-disable-kv-cache" not in everything
    assert said()["--chunked-prefill-size"] != str(NO_CHUNKS)


def test_key_is_in_the_file_and_not_in_the_command() -> None:
    assert config_text(30001, "se'cr\"et: #1") == 'port: 30001\napi-key: "se\'cr\\"et: #1"\n'
    assert config_text(30001, None) == "port: 30001\n"
    assert not {"--api-key", "--port"} & set(said())


def test_deterministic_kernels_are_requested_only_if_wanted() -> None:
    name = "--enable-deterministic-inference"
    assert name in said(deterministic=True)
    assert name not in said()
    needed = variables({}, (card(24),), STORE, HOME, deterministic=True)
    tile = int(needed["SGLANG_FLASHINFER_PREFILL_SPLIT_TILE_SIZE"][0])
    assert all(size % tile == 0 for size in (*memory._BATCHES, *memory._LARGE_BATCHES))
    # The server must be known to have it, so that others are not given this one by mistake.
    with pytest.raises(StartError, match="deterministic=True"):
        check_arguments(StartOptions(arguments=(name,)), on_cpu=False)


def test_the_served_name_has_no_colon() -> None:
    assert said(model="models/a:b")["--served-model-name"] == "models/a_b"


def test_every_word_has_a_reason() -> None:
    everything = chosen(revision="r", quantization="fp8", tp_size=2, dp_size=2)
    everything += chosen(device=CPU)
    assert all(flag.why and not flag.why.endswith(".") for flag in everything)


def test_the_gpus_are_named_by_uuid() -> None:
    given = variables({}, (card(24),), STORE, HOME)
    assert given["CUDA_VISIBLE_DEVICES"][0] == "GPU-0"
    assert "Ampere" in given["CUDA_VISIBLE_DEVICES"][1]
    assert "SGLANG_USE_CPU_ENGINE" not in given


def test_unequally_free_gpus_do_not_stop_a_start() -> None:
    two = variables({}, (card(24), card(24, 12)), STORE, HOME)
    assert two["SGLANG_ENABLE_TP_MEMORY_INBALANCE_CHECK"][0] == "0"
    assert "SGLANG_ENABLE_TP_MEMORY_INBALANCE_CHECK" not in variables({}, (card(24),), STORE, HOME)


def test_a_cpu_server_looks_for_no_gpu() -> None:
    given = variables({}, (), STORE, HOME)
    assert given["SGLANG_USE_CPU_ENGINE"][0] == "1"
    assert given["CUDA_VISIBLE_DEVICES"][0] == ""


def test_processes_of_one_gpu_meet_in_a_private_file_and_not_at_an_open_port() -> None:
    name = "SGLANG_DISTRIBUTED_INIT_METHOD_OVERRIDE"
    assert variables({}, (), STORE, HOME)[name][0] == f"file://{STORE}"
    assert variables({}, (card(24),), STORE, HOME)[name][0] == f"file://{STORE}"
    assert name not in variables({}, (card(24), card(24)), STORE, HOME)
    assert name not in variables({}, (), "/state#1/of?it/store", HOME)


def test_messages_are_msgpack_where_it_was_tried_and_the_environment_says_nothing_else() -> None:
    name = "SGLANG_USE_PICKLE_IPC"
    assert variables({}, (), STORE, HOME, msgpack=True)[name][0] == "0"
    assert name not in variables({name: "1"}, (card(24),), STORE, HOME, msgpack=True)
    assert name not in variables({}, (), STORE, HOME)


def test_warm_up_bypasses_proxies() -> None:
    given = variables(
        {"no_proxy": "example.org, localhost", "HTTPS_PROXY": "http://p"}, (), STORE, HOME
    )
    assert given["no_proxy"][0] == "example.org,localhost,127.0.0.1"
    assert given["NO_PROXY"][0] == "127.0.0.1,localhost"
    assert "HTTPS_PROXY" not in given


def test_the_choice_of_kernels_is_left_to_sglang_on_a_gpu() -> None:
    assert "attention" not in " ".join(said())
