"""What a known failure of SGLang is: how its log tells it, and what to say of it.

* Failures that need a GPU: known from the wording in the sources, none of them seen to happen.

``source`` names the place in SGLang 0.5.23, torch 2.14.1, flashinfer 0.7.2 or triton that writes
the words. A wording that stands in a compiled library is named with that library.

* Failures of the command and of the machine: options, memory, disk, port, kernels, watchdog.

The wordings are those of SGLang 0.5.23 and torch 2.14.1. All were seen in real runs but those
with a ``source``.

* Failures of the model that was asked for: its folder, its files, the hub that has it.

The wordings are those of SGLang 0.5.23, transformers 5.19.0, huggingface_hub 1.33.0 and
safetensors. All were seen in real runs but those with a ``source``.

* Every failure that is known, in the order in which a log is asked for them.

The more a wording says, the earlier it stands: a broad one, such as a missing module or a CUDA
error, is the last of its kind.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

SHORTER: Final = (
    "ask for shorter texts, `--context-tokens 8192` (`context_tokens=8192`): all memory is then "
    "planned anew"
)
"""What needs less memory. Never a size of the KV cache: one that is smaller than the context makes
long texts wait for ever, and emberd plans it."""


@dataclass(frozen=True, slots=True)
class Failure:
    """One way in which a server fails.

    Attributes:
        name: What it is called in ``docs/failures.md``.
        mark: Found in the log of a server that failed like this, and of no other that stands
            behind it in the table. Its named groups are values for ``cause`` and ``advice``.
        cause: What happened, in one sentence. ``{...}`` is a group of ``mark``, or ``model`` or
            ``port`` from the server's settings.
        advice: What to type or to change.
        source: Where the wording comes from, as file and line below the packages' root, when no
            run of ours has produced the failure; None when one has, whose log is kept.
        port_taken: It lost the HTTP port to somebody else.
        killed: Somebody from outside killed it: nothing of its own is known to be wrong.
    """

    name: str
    mark: re.Pattern[str]
    cause: str
    advice: str
    source: str | None = None
    port_taken: bool = False
    killed: bool = False

    @property
    def proven(self) -> bool:
        """Whether a real run has produced it, and not its wording alone is known."""
        return self.source is None


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


_ARGUMENTS: Final = (
    "Take it out of EMBERD_ENGINE_ARGS (or of the arguments of `emberd up`); `emberd up --dry-run` "
    "shows the whole command."
)
_REPORT: Final = (
    "Read its log; if it happens again, `emberd doctor --json` and the log make a report."
)
_FREE_HOST: Final = f"Free some memory, or {SHORTER}; a smaller model needs less too."

OPTIONS: Final = (
    Failure(
        "bad flag",
        re.compile(r"error: unrecognized arguments: (?P<flags>[^\n]+)"),
        "the installed SGLang does not know the option {flags}",
        _ARGUMENTS,
    ),
    Failure(
        "bad value of a flag",
        re.compile(r": error: (?P<what>argument [^\n]+|ambiguous option: --[\w-]+)"),
        "SGLang refuses an option: {what}",
        _ARGUMENTS,
    ),
)

PORT: Final = (
    Failure(
        "port taken",
        re.compile(
            r"error while attempting to bind on address \('(?P<host>[^']+)', (?P<port>\d+)\)"
            r"|\[Errno 98\] Address already in use"
        ),
        "another program took port {port} before SGLang could listen on it",
        "Try again; a fixed port (EMBERD_PORT) must be one that nobody else uses: `ss -ltnp`.",
        port_taken=True,
    ),
    Failure(
        "internal port taken",
        re.compile(r"EADDRINUSE|The server socket has failed to (?:listen|bind)"),
        "another program took one of the ports over which SGLang's processes talk",
        "Try again: they are chosen at random.",
        "torch/lib/libtorch_cpu.so",
    ),
)

KERNELS: Final = (
    Failure(
        "kernel library missing",
        re.compile(r"ImportError: (?P<library>lib\S+): cannot open shared object file"),
        "SGLang's kernels need the library {library}, which this machine does not have",
        "libcuda.so.1 comes with the NVIDIA driver (without a GPU: EMBERD_DEVICE=cpu), "
        "libnuma.so.1 with `apt install libnuma1`.",
    ),
    Failure(
        "kernel missing",
        re.compile(r"the kernel sgl_kernel\.(?P<kernel>\S+) does not exist on the CPU"),
        "{model} needs the kernel {kernel}, which SGLang has for GPUs alone",
        "Serve it on a GPU, or with EMBERD_ENGINE=transformers.",
        "emberd/engines/sglang/cpu/sgl_kernel/__init__.py",
    ),
    Failure(
        "incomplete installation",
        re.compile(r"(?:ModuleNotFoundError: |ImportError: )(?P<what>[^\n]+)"),
        "SGLang's environment is incomplete: {what}",
        "Install it anew: `emberd engine remove sglang`, then `emberd engine install sglang`.",
    ),
    Failure(
        "no GPU",
        re.compile(
            r"Found no NVIDIA driver on your system"
            r"|No accelerator \(CUDA, XPU, HPU, NPU, MUSA, MPS\)"
        ),
        "this machine has no NVIDIA GPU, or no driver for it",
        "Without a GPU: EMBERD_DEVICE=cpu (slow), or a server that runs elsewhere: "
        "EMBERD_BASE_URL=http://HOST:30000/v1. With one, install its driver (580 or newer); a "
        "container needs `--gpus all`.",
    ),
)

DISK: Final = (
    Failure(
        "shared memory full",
        re.compile(
            r"unable to (?:allocate|resize|write to|mmap|open)[^\n]*"
            r"(?:shared memory|/dev/shm|torch_)"
            r"|/dev/shm[^\n]*No space left on device|No space left on device[^\n]*/dev/shm"
        ),
        "the shared memory (/dev/shm) is full",
        "See what fills it: `ls -l /dev/shm`; a container needs --shm-size 2g or --ipc=host.",
        "torch/lib/libtorch_cpu.so",
    ),
    Failure(
        "disk full",
        re.compile(r"No space left on device"),
        "a disk is full: no space was left for {model} or for a file of the server",
        "`df -h` shows which; HF_HOME moves the hub's cache, TMPDIR the temporary files.",
    ),
)

MEMORY: Final = (
    Failure(
        "no memory for the KV cache",
        re.compile(
            r"Loaded weights leave no GPU memory for the KV cache under "
            r"--mem-fraction-static=(?P<fraction>\S+?)\. "
            r"Raise --mem-fraction-static above (?P<least>[\d.]+)"
        ),
        "the weights leave no memory for the KV cache: the fraction of memory that SGLang may "
        "take is {fraction}, and it needs more than {least}",
        _FREE_HOST,
    ),
    Failure(
        "KV cache too small",
        re.compile(
            r"Not enough memory\. Please try to increase --mem-fraction-static\."
            r"(?: Current value: mem_fraction_static=(?P<fraction>[-\d.]+))?"
        ),
        "there is no memory for a single token of KV cache",
        _FREE_HOST,
        "sglang/srt/model_executor/pool_configurator.py:96",
    ),
    Failure(
        "host memory",
        re.compile(r"DefaultCPUAllocator: (?:can't|not enough memory)[^\n]*?(?P<bytes>\d+) bytes"),
        "the machine ran out of memory: {bytes} more bytes were wanted",
        _FREE_HOST,
    ),
    Failure(
        "host memory, without figures",
        re.compile(
            r"^MemoryError|Cannot allocate memory|std::bad_alloc|unable to mmap \d+ bytes"
            r"|can't start new thread|failed to map segment",
            re.MULTILINE,
        ),
        "the machine ran out of memory",
        _FREE_HOST,
    ),
)

DEATHS: Final = (
    Failure(
        "watchdog",
        re.compile(r"watchdog timeout \(self\.watchdog_timeout=(?P<seconds>[\d.]+)"),
        "a batch took longer than the {seconds} s that SGLang's watchdog allows",
        "Raise it on a slow machine, EMBERD_ENGINE_ARGS='--watchdog-timeout 1800'; on a fast one "
        "look for what holds the machine up.",
    ),
    Failure(
        "killed from outside",
        re.compile(
            r"scheduler died during initialization \(exit code: -9\)"
            r"|Subprocess (?P<process>\S+) \(pid=\d+\) crashed with exit code -9"
        ),
        "a process of SGLang was killed, most likely because the machine's memory ran out",
        "Look at `dmesg -T | grep -i oom`. " + _FREE_HOST,
        killed=True,
    ),
    Failure(
        "crashed",
        re.compile(r"Fatal Python error: (?P<what>[^\n]+)"),
        "a process of SGLang crashed: {what}",
        _REPORT,
    ),
    Failure(
        "ended",
        re.compile(
            r"(?:crashed with |scheduler died during initialization \()exit code:? (?P<code>-?\d+)"
        ),
        "a process of SGLang ended with code {code}",
        _REPORT,
    ),
)

WARM_UP: Final = (
    Failure(
        "tokenizer missing",
        re.compile(
            r"index is out of bounds for dimension with size 0"
            r"|Can't load tokenizer for '(?P<model>[^']+)'"
            r"|Couldn't instantiate the backend tokenizer"
        ),
        "{model} has no usable tokenizer: a text became no tokens at all",
        "Give the folder that holds tokenizer.json and tokenizer_config.json beside config.json.",
    ),
    Failure(
        "warm-up failed",
        re.compile(r"Initialization failed\. warmup error: [\s\S]*\n(?P<what>\S*Error: [^\n]+)"),
        "the first request of the start failed: {what}",
        "Read its log. A proxy for loopback addresses gives this too: set NO_PROXY=127.0.0.1.",
    ),
)


_COPY_AGAIN: Final = (
    "Compare its files with the original and copy it again; for a model of the hub, remove it "
    "from the cache (`hf cache rm`) and start again."
)
_LOG_IN: Final = "log in with `hf auth login`, or set HF_TOKEN to a token that may read it."
_NEWER: Final = "Take a model that SGLang serves, or EMBERD_ENGINE=transformers for a Qwen3 one."

HUB: Final = (
    Failure(
        "gated model",
        re.compile(
            r"You are trying to access a gated repo\.\s+"
            r"Make sure to have access to it at https?://[^/\s]+/(?P<model>\S+?)\.\s"
            r"|Cannot access gated repo for url(?![\s\S]*You are trying to access a gated repo)"
        ),
        "{model} is gated: the hub gives it only to those who were let in",
        f"Ask for access on the model's page, then {_LOG_IN}",
    ),
    Failure(
        "revision not found",
        re.compile(
            r"(?P<revision>\S+) is not a valid git identifier[^\n]*?"
            r"https?://[^/\s]+/(?P<model>[^'\s]+)'"
        ),
        "{model} has no revision {revision} on the hub",
        "Give revision= a commit, branch or tag from the model's page, or leave it out.",
    ),
    Failure(
        "model not found",
        re.compile(
            r"(?P<model>\S+) is not a local folder and is not a valid model identifier"
            r"|Repository Not Found for url(?![\s\S]*is not a local folder)"
        ),
        "{model} is neither a folder on this machine nor a model on the hub that you may see",
        f"Check the name, which has the form owner/name; if it is private, {_LOG_IN}",
    ),
    Failure(
        "bad path",
        re.compile(r"Repo id must be in the form [^:]*: '(?P<path>[^']+)'"),
        "there is no folder {path}, and it cannot be the name of a model on the hub",
        "Correct the path (model= or EMBERD_MODEL): the folder that holds config.json.",
    ),
    Failure(
        "offline and not in the cache",
        re.compile(r"outgoing traffic has been disabled|[Oo]ffline mode is enabled"),
        "{model} is not in the hub's cache on this machine, and HF_HUB_OFFLINE forbids a download",
        "Unset HF_HUB_OFFLINE, or name the folder that holds the model; HF_HOME says where the "
        "cache is.",
    ),
    Failure(
        "hub unreachable",
        re.compile(
            r"thrown while requesting \w+ https?://[^/\s]+/(?P<model>\S+?)/resolve/"
            r"[\s\S]*We couldn't connect to '(?P<hub>[^']+)'"
            r"|We couldn't connect to '(?P<other>[^']+)'"
        ),
        "the hub could not be reached, and {model} is not in its cache on this machine",
        "Check the network (HTTPS_PROXY, HF_ENDPOINT); or download the model elsewhere with "
        "`hf download {model}` and give the folder as model=.",
    ),
    Failure(
        "hub refused",
        re.compile(r"(?P<status>429 Too Many Requests|HTTPStatusError: Server error '5\d\d[^']*')"),
        "the hub did not give {model} out: {status}",
        "Try again later; `hf auth login` raises the limit of requests.",
        "huggingface_hub/utils/_http.py:944",
    ),
)

FILES: Final = (
    Failure(
        "config.json is not JSON",
        re.compile(r"config file at '(?P<path>[^']+)' is not a valid JSON file"),
        "{path} is not valid JSON",
        _COPY_AGAIN,
    ),
    Failure(
        "config.json missing",
        re.compile(
            r"Unrecognized model in (?P<model>\S+)\. Should have a `model_type` key"
            r"|(?P<folder>\S+) does not appear to have a file named config\.json"
        ),
        "{model} holds no config.json that says which kind of model it is",
        "Give the folder that holds config.json, tokenizer.json and the weights.",
    ),
    Failure(
        "unknown model type",
        re.compile(r"model type `(?P<type>[^`]+)` but Transformers does not recognize"),
        "{model} is of the type {type}, which this engine's Transformers does not know",
        _NEWER,
    ),
    Failure(
        "architecture not supported",
        re.compile(
            r"Cannot find model module\. '(?P<arch>[^']+)' is not a registered model"
            r"|Model architectures \[?'?(?P<archs>[^'\]]+)'?\]? are not supported"
            r"|(?P<impl>\w+) has no SGLang implementation"
        ),
        "SGLang has no implementation of the architecture that {model} names",
        _NEWER,
    ),
    Failure(
        "no weights",
        re.compile(r"Cannot find any model weights with `(?P<path>[^`]+)`"),
        "{path} holds no weights (*.safetensors)",
        _COPY_AGAIN,
    ),
    Failure(
        "weights missing",
        re.compile(
            r"references \d+ shard file\(s\) missing from (?P<path>.+?) \([^)]*\): "
            r"\[(?P<files>[^\]]+)\]"
        ),
        "files of the weights are missing in {path}: {files}",
        _COPY_AGAIN,
    ),
    Failure(
        "corrupt weights",
        re.compile(r"SafetensorError: (?P<what>[^\n]+)"),
        "a file of {model}'s weights is damaged or incomplete: {what}",
        _COPY_AGAIN,
    ),
    Failure(
        "weights and config.json do not fit",
        re.compile(
            r"The size of tensor a \((?P<wanted>\d+)\) must match the size of tensor b "
            r"\((?P<found>\d+)\)"
        ),
        "the weights of {model} do not fit its config.json: {wanted} against {found} numbers",
        _COPY_AGAIN,
    ),
)

SHAPE: Final = (
    Failure(
        "quantisation needs AMX",
        re.compile(r"(?P<method>\w+) on CPU requires that CPU has AMX support"),
        "this processor has no AMX, which SGLang's quantisation on a CPU needs ({method})",
        "Serve the model's own format, or serve it on a GPU.",
    ),
    Failure(
        "not JSON",
        re.compile(r"JSONDecodeError: (?P<what>[^\n]+)"),
        "an option or a file of the model is not valid JSON: {what}",
        "Check --json-model-override-args in EMBERD_ENGINE_ARGS, then the *.json files of {model}.",
    ),
    Failure(
        "context too long",
        re.compile(
            r"User-specified context_length \((?P<asked>\d+)\) is greater than the derived "
            r"context_length \((?P<native>\d+)\)"
        ),
        "texts of {asked} tokens were asked for, and {model} takes {native}",
        "Ask for at most {native}, `--context-tokens {native}`, or split longer texts.",
    ),
    Failure(
        "not an embedding model",
        re.compile(
            r"unexpected keyword argument 'get_embedding'"
            r"|does not appear to be an embedding model"
        ),
        "{model} gives no embeddings: SGLang has no pooling for its architecture",
        "Take an embedding model, such as Qwen/Qwen3-Embedding-0.6B.",
    ),
)


FAILURES: Final[tuple[Failure, ...]] = (
    *OPTIONS,
    *PORT,
    *DISK,
    *HUB,
    *FILES,
    *SHAPE,
    *WARM_UP,
    *MEMORY,
    *OLD_GPU,
    *GPU_MEMORY,
    *KERNELS,
    *GPU_RUNTIME,
    *DEATHS,
)
