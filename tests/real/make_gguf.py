"""Converts a Qwen3 checkpoint to a GGUF file, for llama.cpp's server.

``python make_gguf.py FOLDER FILE [PORT [F32|F16 [PARALLEL]]]``, with the package ``gguf``; given a
PORT and ``xllamacpp``, it also serves the file there until it is killed, under the name of FOLDER.
PARALLEL is how many texts it may compute at a time.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any

_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
}
_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_proj": "attn_k",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.down_proj": "ffn_down",
    "mlp.up_proj": "ffn_up",
}


def convert(folder: Path, file: Path, dtype: str = "F32") -> None:
    """Write the checkpoint in ``folder`` to ``file``, as llama.cpp's own converter does."""
    from gguf import (  # type: ignore[import-not-found]  # not in this environment
        GGUFWriter,
        LlamaFileType,
        PoolingType,
    )

    config = json.loads((folder / "config.json").read_text())
    writer = GGUFWriter(file, "qwen3")
    writer.add_name(folder.name)
    kinds = {"F32": LlamaFileType.ALL_F32, "F16": LlamaFileType.MOSTLY_F16}
    writer.add_file_type(kinds[dtype])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_pooling_type(PoolingType.LAST)
    _add_tokenizer(writer, json.loads((folder / "tokenizer.json").read_text()), config)
    _add_weights(writer, folder, dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: Any, tokenizer: dict[str, Any], config: dict[str, Any]) -> None:
    from gguf import TokenType

    special = {entry["id"]: entry["content"] for entry in tokenizer["added_tokens"]}
    by_id = {number: token for token, number in tokenizer["model"]["vocab"].items()} | special
    tokens, types = [], []
    for number in range(config["vocab_size"]):
        token = by_id.get(number)
        kind = TokenType.NORMAL
        if token is None:
            kind = TokenType.UNUSED
        elif number in special:
            kind = TokenType.CONTROL if token.startswith("<|") else TokenType.USER_DEFINED
        tokens.append(token or f"[PAD{number}]")
        types.append(kind)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["eos_token_id"])
    writer.add_add_eos_token(True)
    writer.add_add_bos_token(False)


def _add_weights(writer: Any, folder: Path, dtype: str) -> None:
    import numpy as np

    # As in the published files: the weights of norms are vectors, and stay in float32.
    of_matrices = {"F32": np.float32, "F16": np.float16}[dtype]
    content = (folder / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    for name, entry in json.loads(content[8:start]).items():
        if name == "__metadata__":
            continue
        target = _NAMES.get(name)
        if target is None:
            _, _, layer, rest = name.split(".", 3)
            target = f"blk.{layer}.{_LAYER_NAMES[rest.removesuffix('.weight')]}.weight"
        assert entry["dtype"] == "BF16"
        first, end = (start + offset for offset in entry["data_offsets"])
        upper = np.frombuffer(content[first:end], np.uint16).astype(np.uint32)
        weights = (upper << 16).view(np.float32).reshape(entry["shape"])
        writer.add_tensor(target, weights.astype(of_matrices) if weights.ndim > 1 else weights)


def serve(folder: Path, file: Path, port: int, parallel: int = 1) -> None:
    """Serve ``file`` as docs/other-servers.md says, until the process is killed.

    That takes gigabytes: for each token of a batch, it reserves a row of Qwen's whole vocabulary.
    """
    import xllamacpp  # type: ignore[import-not-found]  # as gguf

    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.model_alias = {str(folder)}
    params.embedding = True
    params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_LAST
    params.n_ctx = 8192 * parallel
    params.n_batch = params.n_ubatch = 8192
    params.n_parallel = parallel
    params.hostnames, params.port = ["127.0.0.1"], port
    params.ui = False
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    source, target, *rest = sys.argv[1:]
    if not Path(target).exists():
        convert(Path(source), Path(target), *rest[1:2])
    if rest:
        serve(Path(source), Path(target), int(rest[0]), *map(int, rest[2:3]))
