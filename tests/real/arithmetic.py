"""What the installed SGLang makes of command lines; run by the interpreter of its environment.

Reads a list of cases as JSON from standard input and writes what SGLang says to each. Its own
parser, its own resolution of arguments and its own sizing of the KV cache are called; only what
they would ask a GPU is answered by the case.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import traceback
from types import SimpleNamespace
from typing import Any

GIB = 1 << 30
MIB = 1 << 20
SRT = "sglang.srt"
# srt/mem_cache/allocation_sizing.py, get_req_to_token_extra_context_len, without speculation.
SPARE_PLACES = 4


def module(name: str) -> Any:
    return importlib.import_module(f"{SRT}.{name}")


def options() -> list[str]:
    """Every option that its parser has, in full: argparse takes beginnings as well."""
    parser = argparse.ArgumentParser()
    module("server_args").ServerArgs.add_cli_args(parser)
    return sorted(name for action in parser._actions for name in action.option_strings)


def resolved(case: dict[str, Any]) -> tuple[Any, Any]:
    memory_hook = module("arg_groups.memory_hook")
    memory_hook.get_device_memory_capacity = lambda _device: case["total_bytes"] / MIB
    server_args = module("server_args").prepare_server_args(case["argv"])
    server_args.resolve_once()
    return server_args, module("arg_groups.overrides").resolving_view(server_args)


def attention(server_args: Any, capability: tuple[int, int]) -> str:
    """The kernels that it would choose by itself on a GPU of this capability."""
    base = module("arg_groups.model_override_base")
    config = module("arg_groups.overrides").model_config_of(server_args)
    real = base.get_platform
    base.get_platform = lambda: SimpleNamespace(
        is_hopper_with_cuda_12_3=capability[0] == 9,
        is_sm100=capability[0] == 10,
        is_hip=False,
        has_flashinfer=True,
    )
    try:
        return str(base.get_default_attn_backend(server_args, False, config))
    finally:
        base.get_platform = real


def pool(server_args: Any, view: Any, case: dict[str, Any]) -> dict[str, Any]:
    """Size the KV cache as a scheduler does when the weights are loaded."""
    kv = module("mem_cache.kv_cache_configurator")
    sizes = module("model_executor.pool_configurator")
    config = module("arg_groups.overrides").model_config_of(server_args)
    parallel = SimpleNamespace(
        attn_tp_size=view.tp_size,
        attn_dcp_size=1,
        launch_world_size=1,
        world_group=SimpleNamespace(cpu_group=None),
        pp_size=1,
        attn_dp_size=1,
    )
    kv.get_parallel = sizes.get_parallel = lambda: parallel
    kv.get_schedule = lambda: view
    kv.get_memory = lambda: view
    kv.get_mm = lambda: view
    kv.get_disagg = lambda: view
    kv.get_exec = lambda: SimpleNamespace(graph=view)
    measured = (case["free_bytes"] - case["context_bytes"]) / GIB
    kv.get_available_gpu_memory = lambda *_, **__: measured - case["weights_bytes"] / GIB
    runner = SimpleNamespace(
        device="cuda",
        gpu_id=0,
        model_config=config,
        mambaish_config=None,
        post_capture_kv_active=False,
        attn_dp_size=1,
    )
    owner = kv.KVCacheConfigurator
    budget = owner._profile_available_bytes(runner, measured)
    cell = cell_bytes(sizes, config, server_args)
    tokens = owner._apply_token_constraints(runner, budget // cell)
    requests = owner.resolve_max_num_reqs(runner, tokens)
    return {
        "cell_bytes": cell,
        "kv_tokens": tokens // view.page_size * view.page_size,
        "table_bytes": requests * (config.context_len + SPARE_PLACES) * 4,
        "context_tokens": config.context_len,
    }


def cell_bytes(sizes: Any, config: Any, server_args: Any) -> int:
    torch = importlib.import_module("torch")
    # Nothing of Qwen3's: it splits the layers of another family over devices.
    module("layers.cp.utils").get_glm_dsa_layer_split_effective_num_layers = lambda _, n: n
    configurator = SimpleNamespace(
        _compute_qsa_cell_size=lambda **_: 0, kv_cache_dtype_str="auto", _cell_size=0
    )
    runner = SimpleNamespace(
        model_config=config,
        kv_cache_dtype=torch.bfloat16,
        kv_cache_dtype_str="auto",
        use_mla_backend=False,
        server_args=server_args,
        is_draft_worker=False,
    )
    layers = config.num_hidden_layers
    return int(sizes.DefaultPoolConfigurator._compute_cell_size(configurator, runner, layers))


def answer(case: dict[str, Any]) -> dict[str, Any]:
    try:
        server_args, view = resolved(case)
        said = {
            "fraction": view.mem_fraction_static,
            "chunk": view.chunked_prefill_size,
            "max_prefill": view.max_prefill_tokens,
            "max_prompts": view.prefill_max_requests,
            "api_key": view.api_key,
            "graphs": len(view.cuda_graph_config.prefill.bs),
            "is_embedding": view.is_embedding,
            "weight_version": view.weight_version,
            "attention": attention(server_args, case["capability"]),
        }
        return said | (pool(server_args, view, case) if case["sized"] else {})
    except (Exception, SystemExit):  # noqa: BLE001 - the error is the answer
        return {"error": traceback.format_exc()}


def main() -> None:
    cases = json.load(sys.stdin)
    answers = [answer(case) for case in cases]
    sys.stdout.write("\n" + json.dumps({"options": options(), "answers": answers}))


if __name__ == "__main__":
    main()
