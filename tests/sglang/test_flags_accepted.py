"""The installed SGLang takes every word that we say, and arrives at our figures.

It is asked by its own parser, its own resolution of arguments and its own sizing of the KV cache,
in one process for all cases, with the totals of GPUs that are not there. That is arithmetic: no
kernel has run on a GPU.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import pytest

from checkpoints_made import write
from emberd.catalog import EMBED, RERANK
from emberd.engines import Launch
from emberd.engines.model_shape import KNOWN, ModelShape
from emberd.engines.sglang import cpu
from emberd.engines.sglang.command import CPU, Flag, config_text, flags
from emberd.engines.sglang.memory import MemoryPlan, on_gpu, on_host, plan_memory
from emberd.engines.sglang.support import GENERATIONS
from emberd.settings import ServerSpec, StartOptions
from memory_cards import KERNELS, card, plans
from real.engines import HERE
from real.record_facts import installed_options

GIB: Final = 1 << 30
QUERY_HEADS: Final = {1024: 16}
PROGRAM: Final = HERE / "arithmetic.py"
STAND_INS: Final = Path(cpu.__path__[0])
CAPABILITIES: Final = list(GENERATIONS)
PORT = 31_234
SPEC: Final = {"revision", "quantization", "context_tokens", "device"}
KEY: Final = "made-up: key 'with' \"quotes\" #1"


@dataclass(frozen=True)
class Case:
    name: str
    spec: ServerSpec
    memory: MemoryPlan | None
    geometry: ModelShape
    config: str
    options: StartOptions = field(default_factory=StartOptions)
    capability: tuple[int, int] = (8, 6)
    sized: bool = False

    def flags(self) -> tuple[Flag, ...]:
        launch = Launch(PORT, KEY, "stamp-1", "unused", self.options, home="/home-of-it")
        return flags(self.spec, launch, self.memory, self.config)


def config(geometry: ModelShape) -> dict[str, Any]:
    return {
        "architectures": [geometry.architecture],
        "model_type": "qwen3",
        "hidden_size": geometry.hidden,
        "intermediate_size": geometry.intermediate,
        "num_hidden_layers": geometry.layers,
        "num_attention_heads": QUERY_HEADS.get(geometry.hidden, 32),
        "num_key_value_heads": geometry.kv_heads,
        "head_dim": geometry.head_dim,
        "vocab_size": geometry.vocabulary,
        "max_position_embeddings": geometry.context_tokens,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "dtype": "bfloat16",
    }


def case_of(folder: Path, model: str, memory: MemoryPlan | None, **given: Any) -> Case:
    wishes = {name: given.pop(name) for name in SPEC & set(given)}
    reranks = model in KNOWN and KNOWN[model].reranks
    task = RERANK if reranks else EMBED
    spec = ServerSpec(str(folder / model.rpartition("/")[2]), task=task, **wishes)
    fields = {"name": model, "geometry": KNOWN.get(model), "config": str(folder / "key.yaml")}
    return Case(spec=spec, memory=memory, **fields | given)


def planned(folder: Path) -> Iterator[Case]:
    """One case for each plan: all cards, all models, the generations of GPUs in turn."""
    capabilities = itertools.cycle(CAPABILITIES)
    for what, name, plan in plans():
        if plan is not None:
            about = {"name": f"{what}, {name}", "capability": next(capabilities)}
            yield case_of(folder, name, plan, sized=True, **about)


def wished(folder: Path) -> Iterator[Case]:
    """Every word that a wish adds, on a GPU and on the CPU."""
    name, geometry = next(iter(KNOWN.items()))
    plan = plan_memory(card(24), geometry, None)
    wishes: list[dict[str, Any]] = [
        {"revision": "0123abc"},
        {"quantization": "fp8"},
        {"options": StartOptions(tp_size=2)},
        {"options": StartOptions(dp_size=2)},
        {"memory": None, "context_tokens": 4096},
    ]
    for wish in wishes:
        yield case_of(folder, name, **{"memory": plan, **wish, "name": f"{wish}"})
    for known, shape in KNOWN.items():
        host = plan_memory(on_host(64 * GIB, 60 * GIB), shape, None)
        yield case_of(folder, known, host, device=CPU, name=f"CPU, {known}")
    encoder = replace(geometry, architecture="BertModel", context_tokens=512)
    one_piece = plan_memory(on_host(64 * GIB, 60 * GIB), encoder, None)
    yield case_of(folder, "bert", one_piece, device=CPU, geometry=encoder)


@dataclass(frozen=True)
class Said:
    options: frozenset[str]
    answers: list[tuple[Case, dict[str, Any]]]

    def planned(self) -> Iterator[tuple[Case, MemoryPlan, dict[str, Any]]]:
        for case, answer in self.answers:
            if case.sized and case.memory:
                yield case, case.memory, answer


@pytest.fixture(scope="module")
def said(sglang_python: str, tmp_path_factory: pytest.TempPathFactory) -> Said:
    folder = tmp_path_factory.mktemp("models")
    for name, geometry in KNOWN.items():
        write(folder / name.rpartition("/")[2], config(geometry))
    write(folder / "bert", config(next(iter(KNOWN.values()))) | BERT)
    (folder / "key.yaml").write_text(config_text(PORT, KEY), encoding="utf-8")
    cases = [*planned(folder), *wished(folder)]
    done = subprocess.run(
        [sglang_python, str(PROGRAM)],
        input=json.dumps([question(case) for case in cases]),
        capture_output=True,
        text=True,
        env={**os.environ, "SGLANG_USE_CPU_ENGINE": "1", "PYTHONPATH": str(STAND_INS)},
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    answers = list(zip(cases, found["answers"], strict=True))
    return Said(frozenset(found["options"]), answers)


BERT: Final = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
}


def question(case: Case) -> dict[str, Any]:
    plan = case.memory
    room = on_gpu(card(24, capability=case.capability))
    return {
        "argv": [word for flag in case.flags() for word in flag.words],
        "total_bytes": 24 * GIB,
        "free_bytes": plan.free_bytes if plan else 0,
        "context_bytes": room.context_bytes,
        "weights_bytes": plan.weights_bytes if plan else 0,
        "capability": case.capability,
        "sized": case.sized,
    }


def test_every_word_is_an_option_in_full(said: Said) -> None:
    """argparse takes beginnings as well, and refuses them when another option begins alike."""
    ours = {flag.words[0] for case, _ in said.answers for flag in case.flags()}
    assert ours - said.options == set()


def test_every_command_is_parsed_and_resolved(said: Said) -> None:
    failed = {case.name: answer["error"] for case, answer in said.answers if "error" in answer}
    assert failed == {}
    assert {case.capability for case, _, _ in said.planned()} == set(CAPABILITIES)


def test_what_we_say_is_what_is_in_effect(said: Said) -> None:
    for case, plan, answer in said.planned():
        names = ("fraction", "chunk", "max_prefill", "max_prompts")
        assert tuple(answer[name] for name in names) == (
            plan.fraction,
            plan.chunked_prefill_tokens,
            plan.max_prefill_tokens,
            plan.max_prefill_prompts,
        ), case.name
        embeds = case.spec.task == EMBED
        assert (answer["is_embedding"], answer["weight_version"]) == (embeds, "stamp-1")


def test_the_key_arrives_through_its_file(said: Said) -> None:
    assert {answer["api_key"] for _, answer in said.answers} == {KEY}


def test_a_token_takes_what_we_count_for_it(said: Said) -> None:
    for case, _, answer in said.planned():
        assert answer["cell_bytes"] == case.geometry.kv_bytes_per_token(), case.name


def test_the_kv_cache_gets_the_tokens_of_the_plan(said: Said) -> None:
    """And SGLang does not find that the loaded weights leave no memory for it."""
    for case, plan, answer in said.planned():
        assert answer["kv_tokens"] == plan.kv_tokens, case.name
        assert answer["context_tokens"] == plan.context_tokens, case.name


def test_the_overhead_holds_what_it_is_an_upper_bound_of(said: Said) -> None:
    graph_bytes = 8 << 20  # srt/arg_groups/memory_hook.py, reserve_for_graph_mb
    workspace = GIB // 2
    for case, plan, answer in said.planned():
        counted = answer["table_bytes"] + answer["graphs"] * graph_bytes + workspace
        assert counted <= plan.overhead_bytes - GIB, case.name


def test_each_generation_chooses_the_kernels_that_we_name(said: Said) -> None:
    for case, _, answer in said.planned():
        assert answer["attention"] in KERNELS[case.capability][0], case.name


def test_the_options_are_read_from_the_source_as_the_parser_has_them(
    said: Said, sglang_python: str
) -> None:
    program = "import sysconfig; print(sysconfig.get_path('purelib'))"
    asked = subprocess.run([sglang_python, "-c", program], capture_output=True, text=True)
    known = installed_options(asked.stdout.strip())
    # argparse makes the negative of a switch, and the help, by itself.
    made = {name for name in said.options if name.startswith("--no-") or name == "--help"}
    assert known | made | {"-h"} == said.options
