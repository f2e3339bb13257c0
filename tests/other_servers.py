"""Servers of other kinds, each answering as the real one did when it was asked (November 2026).

sglang-router 0.3.2 in front of SGLang 0.5.23, vLLM 0.32 on a CPU, llama.cpp's server (xllamacpp
2026.10.11549), infinity 0.0.78, and SGLang 0.5.23 with a model that gives no embeddings.
docs/other-servers.md says how they were started. Text Embeddings Inference 1.9.3 answers as its
source says: it was not run. Those of rerankers are at the end; infinity answers there as its source
says.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from typing import Any, ClassVar

from emberd.catalog import lookup
from fake_reranker import NO, YES, FakeReranker, tokenize
from fake_server import QWEN, FakeServer, refusal
from http_server import Answer, Request, model_info, models, reply


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


class Tei(Other):
    """Text Embeddings Inference: lists no models, cuts by default, turns ids into text."""

    api_key: str | None = None
    served_as: str | None = None  # --served-model-name
    pooling = "last_token"
    kind: Any = None  # of its model, where it is not one of embeddings
    cuts = True  # --auto-truncate
    most_in_request = 32  # --max-client-batch-size
    characters_a_token = 250
    prompt = ""  # --default-prompt
    prompt_is_shown = True  # by /tokenize
    without: tuple[str, ...] = ()  # fields that its /info lacks

    def routes(self) -> dict[str, Answer]:
        """Those of TEI that are used."""
        return {
            "/info": self._info,
            "/tokenize": self._tokenize,
            "/v1/embeddings": self._embeddings,
            "/health": self._static({}),
        }

    def _respond(self, request: Request, connection: socket.socket) -> bytes:
        # Unknown routes are not behind its key, and have no body.
        if request.path not in {**self.routes(), **self.closed}:
            return reply(404, b"")
        return super()._respond(request, connection)

    def _info(self, request: Request, connection: socket.socket) -> bytes:
        info = {
            "model_id": self.model,
            "model_sha": None,
            "model_dtype": "float16",
            "served_model_name": self.served_as or self.model,
            "model_type": self.kind or {"embedding": {"pooling": self.pooling}},
            "max_concurrent_requests": 512,
            "max_input_length": self.context_tokens,
            "max_batch_tokens": 16384,
            "max_batch_requests": None,
            "max_client_batch_size": self.most_in_request,
            "auto_truncate": self.cuts,
            "tokenization_workers": 8,
            "version": "1.9.3",
            "sha": "0d124dc9773be6ac5a9a57d8439aba9bbbf33273",
            "docker_label": "sha-0d124dc",
        }
        return reply(200, {name: each for name, each in info.items() if name not in self.without})

    def _tokenize(self, request: Request, connection: socket.socket) -> bytes:
        text = request.body["inputs"]
        assert isinstance(text, str)
        if (refused := self._limits([text], cuts=False)) is not None:
            return refused
        whole = (self.prompt if self.prompt_is_shown else "") + text
        tokens: list[dict[str, Any]] = []
        for place, byte in enumerate(whole.encode()):
            at = {"text": chr(byte), "special": False, "start": place, "stop": place + 1}
            tokens.append({"id": byte, **at})
        if self.end_of_text is not None:
            end = {"text": "<|endoftext|>", "special": True, "start": None, "stop": None}
            tokens.append({"id": self.end_of_text, **end})
        return reply(200, [tokens])

    def _embeddings(self, request: Request, connection: socket.socket) -> bytes:
        inputs = request.body["input"]
        if len(inputs) > self.most_in_request:
            most = f"maximum allowed batch size {self.most_in_request}"
            return self._refused(422, "Validation", f"batch size {len(inputs)} > {most}")
        if (refused := self._limits(inputs, cuts=self.cuts)) is not None:
            return refused
        for given in inputs:
            if not self.cuts and len(ids := self._ids(given)) > (self.context_tokens or 0):
                most = f"must have less than {self.context_tokens} tokens. Given: {len(ids)}"
                return self._refused(422, "Validation", f"`inputs` {most}")
        return super()._embeddings(request, connection)

    def _limits(self, inputs: list[Any], *, cuts: bool) -> bytes | None:
        most = (self.context_tokens or 0) * self.characters_a_token
        for given in inputs:
            if not given:
                return self._refused(400, "Empty", "`inputs` cannot be empty")
            if len(given) > most and not cuts:
                said = f"`inputs` must have less than {most} characters. Given: {len(given)}"
                return self._refused(422, "Validation", said)
        return None

    def _refused(self, status: int, kind: str, message: str) -> bytes:
        return reply(status, {"message": message, "code": status, "type": kind})

    def _refusal(self, inputs: list[str | list[int]]) -> str | None:
        return None

    def _ids(self, given: str | list[int]) -> list[int]:
        if isinstance(given, list):
            # Its tokenizer makes text of them, and tokenizes that.
            text = bytes(each for each in given if each < 256).decode("utf-8", "replace")
            return [*text.encode()]
        most = (self.context_tokens or 0) * self.characters_a_token
        ids = super()._ids(self.prompt + given[:most])
        return ids if not self.cuts else [*ids[:-1][: (self.context_tokens or 0) - 1], ids[-1]]

    def _reply(self, body: dict[str, Any], inputs: list[Any]) -> dict[str, Any]:
        return {**super()._reply(body, inputs), "model": self.served_as or self.model}


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


class VllmGenerates(FakeReranker):
    """vLLM 0.32 with a reranker as a model that generates: ``/generative_scoring``."""

    cuts_at: int | None = None  # tokens of a prompt, of which it drops the rest without an error

    def routes(self) -> dict[str, Answer]:
        """Those of vLLM."""
        return {
            "/v1/models": self._models,
            "/tokenize": self._tokenize,
            "/generative_scoring": self._score,
        }

    def _models(self, request: Request, connection: socket.socket) -> bytes:
        found = models(self.model, self.context_tokens)
        return reply(200, {**found, "data": [{**found["data"][0], "owned_by": "vllm"}]})

    @property
    def scored(self) -> list[list[Any]]:
        return [request.body["items"] for request in self.to("/generative_scoring")]

    def _score(self, request: Request, connection: socket.socket) -> bytes:
        body = request.body
        assert body["label_token_ids"] == [YES, NO]
        assert body["apply_softmax"] is True
        # A query is tokenized apart, and by default with what the tokenizer appends.
        assert body["query"] == ("" if isinstance(body["items"][0], str) else [])
        assert body["add_special_tokens"] is False
        read = [tokenize(item) if isinstance(item, str) else item for item in body["items"]]
        return self._items(body, [ids[: self.cuts_at] for ids in read])

    def _items(self, body: dict[str, Any], read: list[list[int]]) -> bytes:
        named = self.named or self.model
        if body["model"] != named:
            message = f"The model `{body['model']}` does not exist."
            error = {"message": message, "type": "NotFoundError", "param": "model", "code": 404}
            return reply(404, {"error": error})
        tokens = sum(map(len, read)) + self.usage_off_by
        usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}
        told = {"usage": usage} if self.says_usage else {}
        scored = enumerate(self.scores_of(read))
        data = [{"index": place, "object": "score", "score": score} for place, score in scored]
        found = {"id": "score-1", "object": "list", "created": 1, "model": named, "data": data}
        return reply(200, {**found, **told})


class VllmClassifies(VllmGenerates):
    """vLLM with a reranker as a classifier: ``/score`` joins the two texts of each pair."""

    template: str | None = None  # of --chat-template
    separator: tuple[int, ...] = ()  # tokens that a cross-encoder has between the texts
    trims = False
    reads_second_first = False
    head: Callable[[float], float] = staticmethod(lambda score: score)
    shapes: Callable[[dict[str, Any]], Any] = staticmethod(lambda found: found)

    def routes(self) -> dict[str, Answer]:
        """Those of vLLM."""
        own = dict.fromkeys(("/score", "/v1/score"), self._score)
        return {"/v1/models": self._models, "/tokenize": self._tokenize, **own}

    @property
    def scored(self) -> list[list[Any]]:
        bodies = [request.body for request in self.to("/score")]
        return [[first + second for first, second in _pairs(body)] for body in bodies]

    def _score(self, request: Request, connection: socket.socket) -> bytes:
        body = request.body
        assert all(isinstance(text, str) for pair in _pairs(body) for text in pair)
        read = [self._joined(first, second) for first, second in _pairs(body)]
        longest = max(map(len, read))
        if self.context_tokens and longest > self.context_tokens:
            message = (
                f"This model's maximum context length is {self.context_tokens} tokens. However, "
                f"your prompt contains at least {self.context_tokens + 1} input tokens."
            )
            return reply(400, {"error": {"message": message, "code": 400}})
        answer = self._items(body, read)
        head, _, content = answer.partition(b"\r\n\r\n")
        if b" 200 " not in head:
            return answer
        found = json.loads(content)
        for item in found["data"]:
            item["score"] = self.head(item["score"])
        return reply(200, self.shapes(found))

    def _joined(self, first: str, second: str) -> list[int]:
        if self.trims:
            first, second = first.strip(), second.strip()
        if self.template is not None:
            return tokenize(self.template.format(query=first, document=second))
        if self.reads_second_first:
            return tokenize(second + first)
        if self.separator:
            return [*tokenize(first), *self.separator, *tokenize(second)]
        return self._ids(first + second)[: self.cuts_at]


def _pairs(body: dict[str, Any]) -> list[tuple[str, str]]:
    """The pairs of a request: one text with each of several, or several with as many."""
    first, second = body["text_1"], body["text_2"]
    return list(
        zip([first] * len(second) if isinstance(first, str) else first, second, strict=True)
    )


class InfinityReranks(FakeReranker):
    """infinity with a reranker: ``/rerank`` removes white space around each text."""

    def routes(self) -> dict[str, Answer]:
        """Those of infinity."""
        return {"/v1/models": self._models}

    def _models(self, request: Request, connection: socket.socket) -> bytes:
        found = models(self.model, None)
        entry = {**found["data"][0], "owned_by": "infinity", "capabilities": ["rerank"]}
        return reply(200, {**found, "data": [entry]})


class TeiReranks(FakeReranker):
    """TEI with a reranker: it lists no models, but says what it serves."""

    def routes(self) -> dict[str, Answer]:
        """Those of TEI."""
        return {"/info": self._info, "/rerank": self._rerank}

    def _info(self, request: Request, connection: socket.socket) -> bytes:
        labels = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
        about = {"model_id": self.model, "model_dtype": "float16", "version": "1.9.3"}
        return reply(200, {**about, "model_type": {"reranker": labels}, "auto_truncate": True})

    def _rerank(self, request: Request, connection: socket.socket) -> bytes:
        return reply(200, [{"index": 0, "score": 0.5}])
