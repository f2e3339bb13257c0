"""Failures that need a GPU: known from the wording in the sources, none of them seen to happen.

``source`` names the place in SGLang 0.5.23, torch 2.14.1, flashinfer 0.7.2 or triton that writes
the words. A wording that stands in a compiled library is named with that library.
"""

from __future__ import annotations

import re
from typing import Final

from emberd.engines.sglang.failure import SHORTER, Failure

_ELSEWHERE: Final = (
    "Choose another GPU with CUDA_VISIBLE_DEVICES, or name a server that runs elsewhere: "
    "EMBERD_BASE_URL=http://HOST:30000/v1."
)
_OLD_GPU: Final = (
    f"SGLang's kernels need compute capability 8.0 (A100, L4, RTX 30) or more. {_ELSEWHERE}"
)
_FREE_MEMORY: Final = (
    "See with nvidia-smi who else holds memory of the GPU and end it, take another with "
    f"CUDA_VISIBLE_DEVICES, or {SHORTER}; a smaller model needs less too."
)
_COMPILES: Final = "SGLang compiles kernels at the first start on a GPU"
_TOOLKIT: Final = (
    "Install the CUDA 13 toolkit (nvcc) and a C++ compiler, or set CUDA_HOME to the folder of the "
    "toolkit that has bin/nvcc."
)
_NO_COMPILER: Final = (
    "Install a C++ compiler (Debian: apt install build-essential), or set CC and CXX."
)
_BROKEN_GPU: Final = (
    "Look at `dmesg` and `nvidia-smi -q` for errors of the GPU; if they name it, take another "
    "with CUDA_VISIBLE_DEVICES."
)

OLD_GPU: Final = (
    Failure(
        "old GPU",
        re.compile(r"SGLang only supports sm75 and above"),
        "this GPU is too old for SGLang: its compute capability is below 7.5",
        _OLD_GPU,
        "sglang/srt/model_executor/model_runner_components/load_model_utils.py:91",
    ),
    Failure(
        "no kernel for this GPU",
        re.compile(r"no kernel image is available for execution on the device"),
        "the installed kernels hold none for this GPU (no kernel image)",
        _OLD_GPU,
        "nvidia/cu13/lib/libcudart.so.13",
    ),
    Failure(
        "old driver",
        re.compile(r"NVIDIA driver on your system is too old \(found version (?P<version>\d+)\)"),
        "the NVIDIA driver is too old for CUDA 13 (it reports version {version})",
        "Update it to 580 or newer; `nvidia-smi` shows what is there.",
        "torch/lib/libc10_cuda.so",
    ),
    Failure(
        "driver and CUDA do not fit",
        re.compile(
            r"(?P<what>CUDA driver version is insufficient for CUDA runtime version"
            r"|forward compatibility was attempted on non supported HW"
            r"|the provided PTX was compiled with an unsupported toolchain)"
        ),
        "the NVIDIA driver does not fit CUDA 13: {what}",
        "Update it to 580 or newer; after an update, restart the machine or the container.",
        "nvidia/cu13/lib/libcudart.so.13",
    ),
    Failure(
        "no CUDA GPU visible",
        re.compile(r"No CUDA GPUs are available|invalid device ordinal"),
        "CUDA sees no such GPU",
        "Compare CUDA_VISIBLE_DEVICES with what `nvidia-smi -L` lists; a container needs "
        "`--gpus all`.",
        "torch/lib/libc10_cuda.so",
    ),
    Failure(
        "attention backend and GPU do not fit",
        re.compile(r"FlashAttention v3 Backend requires SM>=80 and SM<=90"),
        "the attention backend fa3 does not run on this GPU",
        "Take the option --attention-backend fa3 away, or write flashinfer for fa3.",
        "sglang/srt/layers/attention/attention_registry.py:244",
    ),
    Failure(
        "quantisation and GPU do not fit",
        re.compile(
            r"quantization method (?P<method>\S+) is not supported for the current GPU\. "
            r"Minimum capability: (?P<least>\d+)\. Current capability: (?P<current>\d+)"
        ),
        "this GPU (capability {current}) cannot run the quantisation {method}, which needs {least}",
        f"Serve the model's own format. {_ELSEWHERE}",
        "sglang/srt/model_loader/loader.py:260",
    ),
)

GPU_MEMORY: Final = (
    Failure(
        "graph capture failed",
        re.compile(r"Capture (?:prefill CUDA|cuda) graph failed: (?P<why>[^\n]{1,200})"),
        "SGLang could not capture its CUDA graphs: {why}",
        "Do without: EMBERD_ENGINE_ARGS='--cuda-graph-backend-prefill disabled'. If memory is "
        f"short, {SHORTER}.",
        "sglang/srt/model_executor/runner/prefill_cuda_graph_runner.py:521",
    ),
    Failure(
        "GPU memory",
        re.compile(
            r"CUDA out of memory\. Tried to allocate (?P<wanted>[\d.]+ \w+)\. "
            r"GPU (?P<gpu>\d+) has a total capacity of (?P<total>[\d.]+ \w+) "
            r"of which (?P<free>[\d.]+ \w+) is free"
        ),
        "GPU {gpu} ran out of memory: {wanted} were wanted and {free} of {total} were free",
        _FREE_MEMORY,
        "torch/lib/libc10_cuda.so",
    ),
    Failure(
        "GPU memory, without figures",
        re.compile(
            r"CUDA out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED"
            r"|Triton Error \[CUDA\]: out of memory"
        ),
        "the GPU ran out of memory",
        _FREE_MEMORY,
        "torch/lib/libc10_cuda.so",
    ),
    Failure(
        "unbalanced GPU memory",
        re.compile(
            r"The memory capacity is unbalanced\. Some GPUs may be occupied by other processes\. "
            r"pre_model_load_memory=(?P<least>[\d.]+), local_gpu_memory=(?P<own>[\d.]+)"
        ),
        "the GPUs of one server have unequal free memory: {least} GB on one, {own} GB on another",
        "End what holds memory on some of them, or leave those out with CUDA_VISIBLE_DEVICES.",
        "sglang/srt/distributed/bootstrap.py:445",
    ),
)

GPU_RUNTIME: Final = (
    Failure(
        "NCCL",
        re.compile(r"NCCL error in: [^,\n]*, (?P<what>[^\n]{1,200})"),
        "the GPUs of one server could not talk to each other (NCCL): {what}",
        "Try tp_size=1; in a container give it --ipc=host or --shm-size 16g; NCCL_DEBUG=INFO "
        "makes the log say more.",
        "torch/lib/libtorch_cuda.so",
    ),
    Failure(
        "no ninja",
        re.compile(
            r"No such file or directory: 'ninja'|Ninja is required to load C\+\+ extensions"
        ),
        f"{_COMPILES}, and finds no ninja to do it with",
        "It belongs to the engine: `emberd engine remove sglang`, then `emberd engine install "
        f"sglang`. {_TOOLKIT}",
        "sglang/kernels/jit/utils/compile/ninja.py:156",
    ),
    Failure(
        "no CUDA compiler",
        re.compile(
            r"Could not find nvcc|nvcc['\"]?: (?:not found|No such file|command not found)"
            r"|nvcc not found|No such file or directory: '[^']*nvcc'"
            r"|CUDA_HOME environment variable is not set"
        ),
        f"{_COMPILES}, and finds no nvcc",
        _TOOLKIT,
        "flashinfer/jit/cpp_ext.py:62",
    ),
    Failure(
        "no host compiler",
        re.compile(
            r"\b(?:[cg]\+\+|gcc|cc1plus)['\"]?: (?:not found|No such file|command not found)"
            r"|Failed to preprocess host compiler properties"
        ),
        f"{_COMPILES}, and finds no C++ compiler",
        _NO_COMPILER,
        "sglang/kernels/jit/utils/compile/toolchain.py:139",
    ),
    Failure(
        "no compiler",
        re.compile(r"Failed to find C(?:\+\+)? compiler"),
        f"{_COMPILES}, and finds no C compiler",
        _NO_COMPILER,
        "triton/runtime/build.py:33",
    ),
    Failure(
        "JIT module not built",
        re.compile(r"Failed to build JIT module (?P<name>\S+)"),
        f"{_COMPILES}, and {{name}} could not be compiled here",
        f"The log holds the compiler's words. {_TOOLKIT}",
        "sglang/kernels/jit/utils/compile/ninja.py:170",
    ),
    Failure(
        "kernel not compiled",
        re.compile(r"Ninja build failed|Error building extension '(?P<name>[^']+)'"),
        f"{_COMPILES}, and one could not be compiled here",
        "The log holds the compiler's words. Remove the half-built cache "
        f"(~/.cache/flashinfer) and try again. {_TOOLKIT}",
        "flashinfer/jit/cpp_ext.py:442",
    ),
    Failure(
        "faulty GPU",
        re.compile(
            r"(?P<what>uncorrectable ECC error encountered|an illegal memory access was encountered"
            r"|device-side assert triggered|system not yet initialized"
            r"|CUDA-capable device\(s\) is/are busy or unavailable|CUDA unknown error)"
        ),
        "the GPU failed: {what}",
        _BROKEN_GPU,
        "nvidia/cu13/lib/libcudart.so.13",
    ),
    Failure(
        "CUDA error",
        re.compile(r"CUDA error: (?P<what>[^\n]{1,200})"),
        "the GPU failed: {what}",
        _BROKEN_GPU,
        "torch/lib/libc10_cuda.so",
    ),
)
