"""Running SGLang servers are recognised by their command lines."""

from __future__ import annotations

import pytest

from emberd.engines.sglang import ENGINE


@pytest.mark.parametrize(
    "command",
    [
        ["sglang", "serve", "--model-path", "m"],
        ["/opt/venv/bin/sglang", "serve", "m"],
        ["/opt/venv/bin/python3.11", "/opt/venv/bin/sglang", "serve", "m"],
        ["python", "-m", "sglang.launch_server", "--model-path", "m"],
        ["/usr/bin/python3", "-u", "-X", "dev", "-W", "ignore", "-m", "sglang.launch_server"],
        ["python3", "-m", "sglang_forked", "sglang.launch_server", "--model-path", "m"],
        ["python3", "-m", "sglang", "serve", "m"],
        ["python3", "-m", "sglang.cli.main", "serve", "m"],
        ["python3", "/src/python/sglang/launch_server.py", "--model-path", "m"],
    ],
    ids=" ".join,
)
def test_a_server_is_recognised(command: list[str]) -> None:
    assert ENGINE.recognises(command)


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["sglang"],
        ["sglang", "version"],
        ["sglang::scheduler"],
        ["sglang::detokenizer"],
        ["python"],
        ["python", "-m"],
        ["python", "-m", "sglang"],
        ["python", "-m", "sglang.bench_serving"],
        ["python", "-m", "sglang_router.launch_router"],
        ["python", "-c", "from multiprocessing.spawn import spawn_main"],
        ["python", "-c", "pass", "-m", "sglang.launch_server"],
        ["python", "train.py", "-m", "sglang.launch_server"],
        ["python", "/opt/venv/bin/sglang", "version"],
        ["python", "-m", "emberd.serving", "--encoder", "demo"],
        ["bash", "-c", "python -m sglang.launch_server"],
        ["vim", "launch_server.py"],
        ["grep", "sglang", "serve"],
    ],
    ids=" ".join,
)
def test_what_is_not_a_server_is_not_recognised(command: list[str]) -> None:
    assert not ENGINE.recognises(command)
