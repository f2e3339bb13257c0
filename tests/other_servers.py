"""Servers of other kinds, each answering as the real one did when it was asked (November 2026).

sglang-router 0.3.2 in front of SGLang 0.5.23, vLLM 0.32 on a CPU, llama.cpp's server (xllamacpp
2026.10.11549), infinity 0.0.78, and SGLang 0.5.23 with a model that gives no embeddings.
docs/other-servers.md says how they were started.
"""

from __future__ import annotations

import re
import socket
from typing import Any, ClassVar

from emberd.catalog import lookup
from fake_server import QWEN, FakeServer, refusal
from http_server import Answer, Request, model_info, reply


class Other(FakeServer):
    """A server whose routes and refusals are another's than SGLang's."""

    not_found: bytes = b'{"detail":"Not Found"}'

    def answers(self) -> dict[str, Any]:
        """What it answers to a GET, besides the routes: a body, or a status with one."""
        return {}

    def routes(self) -> dict[str, Answer]:
        """Only those of embeddings and models; everything else is not there."""
        kept = {"/v1/embeddings": self._embeddings}
        return {**kept, **{path: self._static(body) for path, body in self.answers().items()}}

    def _static(self, body: Any) -> Answer:
        return lambda request, connection: reply(200, body)


class Router(Other):
    """sglang-router: no context, the old /get_model_info, a tokenizer that ends no text."""

    def answers(self) -> dict[str, Any]:
        entry = {"id": self.model, "object": "model", "owned_by": "local"}
        return {
            "/v1/models": {"object": "list", "data": [entry]},
            "/get_model_info": model_info(self.model, is_generation=self.is_generation),
        }

    def routes(self) -> dict[str, Answer]:
        return {**super().routes(), "/v1/tokenize": self._tokenize}

    def _tokenize(self, request: Request, connection: socket.socket) -> bytes:
        text = request.body["prompt"]
        tokens = list(text.encode())
        return reply(200, {"tokens": tokens, "count": len(tokens), "char_count": len(text)})


class Mixed(Router):
    """sglang-router in front of servers of two models: each request goes to the next."""

    def answers(self) -> dict[str, Any]:
        names = ["/models/another", self.model]
        data = [{"id": name, "object": "model", "owned_by": "local"} for name in names]
        return {**super().answers(), "/v1/models": {"object": "list", "data": data}}

    def _reply(self, body: dict[str, Any], inputs: list[Any]) -> dict[str, Any]:
        turn = len(self.to("/v1/embeddings")) % 2
        return {**super()._reply(body, inputs), "model": ["/models/another", self.model][turn]}


class Vllm(Other):
    """vLLM: knows its model's name, its own /tokenize, and errors in OpenAI's nested form."""

    matryoshka = False

    def answers(self) -> dict[str, Any]:
        entry = {
            "id": self.named or self.model,
            "object": "model",
            "owned_by": "vllm",
            "root": self.model,
            "parent": None,
            "max_model_len": self.context_tokens,
        }
        return {"/v1/models": {"object": "list", "data": [entry]}}

    def routes(self) -> dict[str, Answer]:
        return {**super().routes(), "/tokenize": self._tokenize}

    def _tokenize(self, request: Request, connection: socket.socket) -> bytes:
        ids = self._ids(request.body["prompt"])
        read = {"count": len(ids), "max_model_len": self.context_tokens, "tokens": ids}
        return reply(200, {**read, "token_strs": None})

    def _embeddings(self, request: Request, connection: socket.socket) -> bytes:
        refused = self._refused(request.body)
        if refused is None:
            return super()._embeddings(request, connection)
        status, message = refused
        error = {"message": message, "type": "BadRequestError", "param": None, "code": status}
        return reply(status, {"error": error})

    def _refused(self, body: dict[str, Any]) -> tuple[int, str] | None:
        if body["model"] != (self.named or self.model):
            return 404, f"The model `{body['model']}` does not exist."
        if "dimensions" in body and not self.matryoshka:
            return 400, (
                "Model '<path>' does not support Matryoshka embeddings; dimensions must be unset "
                f"(received dimensions={body['dimensions']})."
            )
        longest = max(len(self._ids(given)) for given in body["input"])
        if self.context_tokens and longest > self.context_tokens:
            return 400, (
                f"This model's maximum context length is {self.context_tokens} tokens. However, "
                f"your prompt contains at least {self.context_tokens + 1} input tokens, which "
                "exceeds this limit even without any output tokens."
            )
        return None

    def _refusal(self, inputs: list[str | list[int]]) -> str | None:
        return None  # blank texts are taken


class LlamaCpp(Other):
    """llama.cpp's server: ignores ``dimensions``, takes any model's name, says it back."""

    embeds = True
    knows_special = True  # the model's file marks special tokens as such
    looks_special: ClassVar = {"</s>": 128_247}  # an ordinary token that it takes for a special one

    def answers(self) -> dict[str, Any]:
        entry = {
            "id": self.model,
            "aliases": [self.model],
            "tags": [],
            "object": "model",
            "created": 1795387791,
            "owned_by": "llamacpp",
            "meta": {
                "vocab_type": 2,
                "n_ctx": self.context_tokens,
                "n_ctx_train": 32_768,
                "n_embd": self.dimensions,
                "ftype": "all F32",
            },
        }
        # Ollama's list stands beside OpenAI's.
        models = [{"name": self.model, "model": self.model, "type": "model"}]
        return {"/v1/models": {"models": models, "object": "list", "data": [entry]}}

    def routes(self) -> dict[str, Answer]:
        return {**super().routes(), "/tokenize": self._tokenize}

    def _tokenize(self, request: Request, connection: socket.socket) -> bytes:
        content, knows = request.body["content"], request.body.get("parse_special", True)
        ids: list[int] = []
        for part in content if isinstance(content, list) else [content]:
            ids += [part] if isinstance(part, int) else self._tokens(part, knows_special=knows)
        if request.body.get("add_special") and self.end_of_text is not None:
            ids.append(self.end_of_text)
        return reply(200, {"tokens": ids})

    def _ids(self, given: str | list[int]) -> list[int]:
        if isinstance(given, list):
            return given
        end = [] if self.end_of_text is None else [self.end_of_text]
        return [*self._tokens(given, knows_special=True), *end]

    def _tokens(self, text: str, *, knows_special: bool) -> list[int]:
        special: dict[str, int] = {}
        if knows_special:
            marked = lookup(QWEN).special_tokens if self.knows_special else ()
            special = {**dict(marked), **self.looks_special}
        pattern = "|".join(map(re.escape, special)) or "(?!)"
        tokens: list[int] = []
        for part in re.split(f"({pattern})", text):
            tokens.extend([special[part]] if part in special else part.encode())
        return tokens

    def _embeddings(self, request: Request, connection: socket.socket) -> bytes:
        status, error = 200, {}
        longest = max(len(self._ids(given)) for given in request.body["input"])
        if not self.embeds:
            message = "This server does not support embeddings. Start it with `--embeddings`"
            status, error = 501, {"message": message, "type": "not_supported_error"}
        elif self.context_tokens and longest > self.context_tokens:
            message = (
                f"request ({longest} tokens) exceeds the available context size "
                f"({self.context_tokens} tokens), try increasing it"
            )
            status, error = 400, {"message": message, "type": "exceed_context_size_error"}
        if error:
            return reply(status, {"error": {"code": status, **error}})
        return super()._embeddings(request, connection)

    def _refusal(self, inputs: list[str | list[int]]) -> str | None:
        return None

    def _reply(self, body: dict[str, Any], inputs: list[Any]) -> dict[str, Any]:
        whole = {name: value for name, value in body.items() if name != "dimensions"}
        return {**super()._reply(whole, inputs), "model": body["model"]}


class Infinity(Other):
    """infinity: trims texts, cuts long ones, counts characters, and takes no token ids."""

    trims = True
    cuts = True

    def answers(self) -> dict[str, Any]:
        entry = {
            "id": self.model,
            "stats": {"queue_fraction": 0.0, "batch_size": 32},
            "object": "model",
            "owned_by": "infinity",
            "created": 1795896735,
            "backend": "torch",
            "capabilities": ["embed"],
        }
        return {"/v1/models": {"data": [entry], "object": "list"}}

    def _embeddings(self, request: Request, connection: socket.socket) -> bytes:
        inputs = request.body["input"]
        if not all(isinstance(given, str) for given in inputs):
            said = {"type": "string_type", "msg": "Input should be a valid string"}
            return reply(422, {"detail": [said]})
        longest = max(len(self._ids(given)) for given in inputs)
        if not self.cuts and self.context_tokens and longest > self.context_tokens:
            # As a server with no other answer to texts that are too long.
            said = {"error": f"`inputs` must have less than {self.context_tokens} tokens"}
            return reply(422, said)
        return super()._embeddings(request, connection)

    def _refusal(self, inputs: list[str | list[int]]) -> str | None:
        return None

    def _ids(self, given: str | list[int]) -> list[int]:
        text = str(given)
        ids = super()._ids(text.strip() if self.trims else text)
        kept = (self.context_tokens or len(ids)) - 1 if self.cuts else len(ids)
        return ids if len(ids) <= kept else [*ids[: kept - 1], ids[-1]]

    def _reply(self, body: dict[str, Any], inputs: list[Any]) -> dict[str, Any]:
        characters = sum(len(text.strip()) for text in inputs)
        usage = {"prompt_tokens": characters, "total_tokens": characters}
        return {**super()._reply(body, inputs), "usage": usage}


class Reranker(FakeServer):
    """SGLang with a cross-encoder: one number a text, which its own reply cannot hold."""

    def _model_info(self, request: Request, connection: socket.socket) -> bytes:
        more = {
            "model_type": "bert",
            "architectures": ["BertForSequenceClassification"],
            "embedding": {"family": "sequence_classification", "task": "classify"},
        }
        return reply(200, model_info(self.model, **more))


class Generator(FakeServer):
    """SGLang with a language model."""

    def _model_info(self, request: Request, connection: socket.socket) -> bytes:
        more = {
            "is_generation": True,
            "architectures": ["Qwen3ForCausalLM"],
            "embedding": {"family": "none", "task": "none"},
        }
        return reply(200, model_info(self.model, **more))

    def _embeddings(self, request: Request, connection: socket.socket) -> bytes:
        message = (
            "This model does not appear to be an embedding model by default. Please add "
            "`--is-embedding` when launching the server or try another model."
        )
        return refusal(400, message)


class ShortOfMemory(FakeServer):
    """SGLang whose memory for keys and values holds less than the context that it states."""

    holds_tokens = 400

    def _refusal(self, inputs: list[str | list[int]]) -> str | None:
        for given in inputs:
            if (length := len(self._ids(given))) >= self.holds_tokens:
                return (
                    f"Input length ({length} tokens) exceeds the maximum allowed length "
                    f"({self.holds_tokens} tokens). Use a shorter input or enable "
                    "--allow-auto-truncate."
                )
        return super()._refusal(inputs)
