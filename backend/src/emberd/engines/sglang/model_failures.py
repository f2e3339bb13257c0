"""Failures of the model that was asked for: its folder, its files, the hub that has it.

The wordings are those of SGLang 0.5.23, transformers 5.19.0, huggingface_hub 1.33.0 and
safetensors. All were seen in real runs but those with a ``source``.
"""

from __future__ import annotations

import re
from typing import Final

from emberd.engines.sglang.failure import Failure

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
