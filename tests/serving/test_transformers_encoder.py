"""The encoder of Qwen3-Embedding without torch: devices, memory, files, the hub's refusals.

With torch it runs in ``tests/sglang/test_transformers_engine.py``.
"""

from __future__ import annotations

import functools
import json
import logging
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import emberd.serving
import waiting
from emberd.errors import BadReplyError, StartError
from emberd.serving import __main__ as process
from emberd.serving import hardware, telemetry, transformers_encoder
from emberd.serving.__main__ import main
from emberd.serving.encoder import LoadOptions, PreparedText
from emberd.serving.hardware import DeviceChoice
from emberd.serving.transformers_encoder import TransformersEncoder, load_checkpoint
from emberd.system import capacity

HERE = DeviceChoice("cpu", "bfloat16", "a test", 1_000_000)


# ---------------------------------------------------------------- where it runs


def torch_with(
    cuda: tuple[int, int] | None = None,
    built: str | None = "13.0",
    mps: bool = False,
    bfloat16_mps: bool = True,
) -> Any:
    """A torch that sees a GPU of this compute capability, or none."""
    return SimpleNamespace(
        __version__="2.14.1",
        version=SimpleNamespace(cuda=built),
        cuda=SimpleNamespace(
            is_available=lambda: cuda is not None,
            get_device_capability=lambda: cuda,
            get_arch_list=lambda: ["sm_75", "sm_80", "sm_120"],
            mem_get_info=lambda: (5, 9),
        ),
        backends=SimpleNamespace(
            mps=SimpleNamespace(
                is_available=lambda: mps, is_macos_or_newer=lambda *version: bfloat16_mps
            )
        ),
        mps=SimpleNamespace(recommended_max_memory=lambda: 9, driver_allocated_memory=lambda: 2),
    )


@pytest.mark.parametrize(
    ("torch", "native", "device", "dtype"),
    [
        (torch_with(), True, "cpu", "bfloat16"),
        (torch_with(), False, "cpu", "float32"),
        (torch_with(cuda=(8, 0)), False, "cuda", "bfloat16"),
        (torch_with(cuda=(7, 5)), True, "cuda", "float32"),
        (torch_with(mps=True), False, "mps", "bfloat16"),
        (torch_with(mps=True, bfloat16_mps=False), True, "mps", "float32"),
    ],
)
def test_bfloat16_is_chosen_where_it_is_native(
    monkeypatch: pytest.MonkeyPatch, torch: Any, native: bool, device: str, dtype: str
) -> None:
    monkeypatch.setattr(hardware, "multiplies_bfloat16", lambda: native)
    place = hardware.choose_device(torch, None, None)
    assert (place.device, place.dtype) == (device, dtype)
    assert place.why


def test_requested_device_and_dtype_are_used() -> None:
    place = hardware.choose_device(torch_with(cuda=(8, 0)), "cpu", "float32")
    assert (place.device, place.dtype, place.why) == ("cpu", "float32", "it was requested")


@pytest.mark.parametrize(
    ("torch", "device", "dtype", "cause"),
    [
        (torch_with(), "cuda", None, "torch finds no CUDA GPU here"),
        (torch_with(built=None), "cuda", None, "is built without CUDA"),
        (torch_with(cuda=(7, 0)), None, None, "its compute capability is 7.0"),
        (torch_with(), "mps", None, "torch finds none here"),
        (torch_with(), "tpu", None, "the device tpu is unknown"),
        (torch_with(), "cpu", "float16", "float16 gives NaN"),
    ],
)
def test_unavailable_device_or_dtype_is_refused(
    torch: Any, device: str | None, dtype: str | None, cause: str
) -> None:
    with pytest.raises(StartError, match=cause) as raised:
        hardware.choose_device(torch, device, dtype)
    assert raised.value.advice


def test_free_memory_of_each_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hardware.choose_device(torch_with(cuda=(8, 0)), None, None).free_bytes == 5
    assert hardware.choose_device(torch_with(mps=True), None, None).free_bytes == 7
    for free in (4096, None):
        monkeypatch.setattr(capacity, "free_memory", lambda free=free: free)
        assert hardware.choose_device(torch_with(), None, None).free_bytes == free


class OutOfMemoryError(RuntimeError):
    """As torch's is called."""


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (MemoryError(), True),
        (OutOfMemoryError("CUDA"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1)"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 1 bytes"), True),
        (RuntimeError("unable to mmap 4 bytes: Cannot allocate memory (12)"), True),
        (ImportError("libtorch.so: failed to map segment from shared object"), True),
        (ValueError("a shape does not fit"), False),
    ],
)
def test_out_of_memory_is_recognised_by_type_or_message(error: Exception, is_one: bool) -> None:
    assert hardware.is_out_of_memory(error) is is_one


# ---------------------------------------------------------------- when memory is short


class ShortOfMemory(TransformersEncoder):
    """Holds no more than five tokens at a time."""

    def __init__(self) -> None:
        super().__init__(LoadOptions("test/short"))
        self.tried: list[int] = []

    def _encode(self, texts: Any) -> NDArray[np.float32]:
        self.tried.append(sum(map(len, texts)))
        if self.tried[-1] > 5:
            raise RuntimeError("not enough memory: you tried to allocate")
        return np.array([[text[0]] for text in texts], dtype=np.float32)


def prepared(*lengths: int) -> list[PreparedText]:
    return [PreparedText(length, [place] * length) for place, length in enumerate(lengths)]


def test_batch_without_memory_is_split_and_keeps_its_order() -> None:
    encoder = ShortOfMemory()
    vectors = encoder.encode(prepared(2, 3, 4, 1, 5))
    assert vectors[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert encoder.tried == [15, 5, 10, 4, 6, 1, 5]


def test_text_without_memory_is_an_error_with_its_length() -> None:
    with pytest.raises(BadReplyError, match="not enough memory on the cpu for a text of 6 tokens"):
        ShortOfMemory().encode(prepared(6))


def test_other_errors_are_not_retried() -> None:
    encoder = ShortOfMemory()
    with pytest.raises(IndexError):
        encoder.encode([PreparedText(0, [])])
    assert encoder.tried == [0]


# ---------------------------------------------------------------- its files


def weights(path: Path, **tensors: tuple[list[int], int]) -> None:
    """Write a safetensors file of zeros: name -> shape and bytes."""
    header, at = {}, 0
    for name, (shape, size) in tensors.items():
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps({"__metadata__": {"format": "pt"}} | header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(at))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint as far as it is looked at before torch is."""
    (tmp_path / "config.json").write_text('{"architectures": ["Qwen3ForCausalLM"]}')
    weights(tmp_path / "model.safetensors", **{"a": ([10, 20], 400), "lm_head.weight": ([7], 14)})
    return tmp_path


def refused(folder: Path, place: DeviceChoice = HERE) -> StartError:
    with pytest.raises(StartError) as raised:
        transformers_encoder.load_checkpoint(folder, place, None)
    assert raised.value.advice
    return raised.value


@pytest.mark.parametrize(
    ("config", "cause"),
    [
        ("not JSON", "has no readable config.json"),
        ('{"architectures": ["BertModel"]}', "is BertModel"),
        ('{"hidden_size": 4}', "is none"),
        (
            '{"architectures": ["Qwen3Model"], "use_sliding_window": true, "sliding_window": 16}',
            "sliding_window=16",
        ),
    ],
)
def test_another_kind_of_model_is_refused(folder: Path, config: str, cause: str) -> None:
    (folder / "config.json").write_text(config)
    assert cause in refused(folder).cause


@pytest.mark.parametrize(("with_head", "family"), [(False, "Embedding"), (True, "Reranker")])
def test_another_kind_of_model_is_answered_with_one_of_the_wanted_task(
    folder: Path, with_head: bool, family: str
) -> None:
    (folder / "config.json").write_text('{"architectures": ["BertModel"]}')
    with pytest.raises(StartError) as raised:
        load_checkpoint(folder, HERE, with_head=with_head)
    assert f"Qwen/Qwen3-{family}-0.6B" in (raised.value.advice or "")


def test_another_pooling_is_refused(folder: Path) -> None:
    (folder / "1_Pooling").mkdir()
    pooling = {"pooling_mode_lasttoken": False, "pooling_mode_cls_token": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    assert "pools by cls" in refused(folder).cause


def test_weights_that_do_not_fit_are_refused_before_they_are_loaded(folder: Path) -> None:
    """200 numbers and 5 %."""
    told = refused(folder, DeviceChoice("cuda", "float32", "", free_bytes=839))
    assert "0.0 GiB is free on the cuda" in told.cause


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "no readable header"),
        (b"\xff" * 64, "no readable header"),
        (b"\x02" + bytes(7) + b"[]", "no readable header"),
        (b"\x10\x27" + bytes(6) + b"[" * 10_000, "no readable header"),
        (b"\x2a" + bytes(7) + b'{"a":{"shape":1,"data_offsets":[0,0]}}    ', "no readable header"),
        (b"\x10" + bytes(7) + b'{"a":{"shape":1}', "no readable header"),
    ],
)
def test_damaged_weights_are_refused(folder: Path, content: bytes, cause: str) -> None:
    (folder / "model.safetensors").write_bytes(content)
    assert cause in refused(folder).cause


def test_incomplete_weights_are_refused_with_their_size(folder: Path) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    expected = f"{path} are incomplete: {len(whole) - 1} of {len(whole)} bytes"
    assert expected in refused(folder).cause


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "has no weights" in refused(folder).cause


@pytest.mark.parametrize("kind", ["missing_keys", "mismatched_keys"])
def test_missing_or_mismatched_weights_are_refused(folder: Path, kind: str) -> None:
    report = {kind: {f"layers.{n}.weight" for n in range(5)}}
    with pytest.raises(StartError, match=r"layers.0.weight, .* \(5 in all\)"):
        transformers_encoder._check_report(folder, report)
    transformers_encoder._check_report(
        folder, {"missing_keys": set(), "unexpected_keys": {"lm_head"}}
    )


# ---------------------------------------------------------------- the hub


def test_existing_folder_is_used(folder: Path) -> None:
    assert transformers_encoder.model_folder(LoadOptions(str(folder))) == folder


@pytest.mark.parametrize("path", ["/nowhere/at-all", "./nowhere", "~/nowhere/at-all"])
def test_missing_path_is_not_looked_up_on_the_hub(path: str) -> None:
    with pytest.raises(StartError, match=f"there is no folder {path}"):
        transformers_encoder.model_folder(LoadOptions(path))


# ---------------------------------------------------------------- its process


def test_the_demo_takes_no_model_and_transformers_needs_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for words in (["--encoder", "transformers"], ["--encoder", "demo", "--model-path", "a/b"]):
        with pytest.raises(SystemExit):
            main([*words, "--port", "0"])
        assert "--model-path is required with --encoder transformers" in capsys.readouterr().err


def test_encoder_is_made_from_the_arguments() -> None:
    words = ["--encoder", "transformers", "--port", "0", "--model-path", "Qwen/Qwen3-Embedding-4B"]
    made = process.create_encoder(process._parser().parse_args(words))
    assert (made.name, made.dimensions) == ("Qwen/Qwen3-Embedding-4B", 2560)


def test_the_bootstrap_needs_no_emberd_and_brings_no_other_package(tmp_path: Path) -> None:
    """Isolated, with the server's own packages: what stands beside emberd must not be seen."""
    bootstrap = Path(emberd.serving.__file__).with_name(emberd.serving.BOOTSTRAP)
    program = (
        "import runpy, sys\n"
        "sys.path = [entry for entry in sys.path if not entry.endswith('backend/src')]\n"
        "sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n"
        "before = list(sys.path)\n"
        f"sys.argv = ['bootstrap', '--help']\n"
        "try:\n"
        f"    runpy.run_path({str(bootstrap)!r}, run_name='__main__')\n"
        "except SystemExit as ended:\n"
        "    assert not ended.code, ended.code\n"
        "assert sys.path == before\n"
        "print(sys.modules['emberd'].__file__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "--encoder" in done.stdout
    assert done.stdout.splitlines()[-1] == str(bootstrap.parents[1] / "__init__.py")


# ---------------------------------------------------------------- lines of progress


def test_progress_is_logged_only_when_it_advances(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(telemetry, "_PROGRESS_EVERY_S", 0.001)
    done = [0]
    asked = threading.Semaphore(0)

    def figure() -> int:
        asked.release()
        return done[0]

    with caplog.at_level(logging.INFO, "emberd.serving"):
        with telemetry.log_progress("loading the weights", figure, 4_000_000_000):
            for so_far in (1_000_000_000, 9_000_000_000):
                _ask(asked, 3)
                done[0] = so_far
                told = f"({min(so_far, 4_000_000_000) / 1e9:.1f} of"
                waiting.until(functools.partial(_says, caplog, told))
            _ask(asked, 3)
    assert caplog.messages == [
        "loading the weights (0.0 of 4.0 GB)",
        "loading the weights (1.0 of 4.0 GB)",
        "loading the weights (4.0 of 4.0 GB)",
    ]


def _says(caplog: pytest.LogCaptureFixture, text: str) -> bool:
    return text in caplog.text


def _ask(asked: threading.Semaphore, times: int) -> None:
    for _ in range(times):
        assert asked.acquire(timeout=10)
