"""The canary: a few short texts whose vectors must fit together before a server's first use.

They are embedded in one request (or several, if the batch size is smaller), and each in a separate
request. The two vectors of a text are compared, and the vectors of different texts, and, for models
whose publisher printed them, similarities. A fault that treats all texts alike and keeps them
apart, such as mean pooling or lower case, is not noticed on a model without printed similarities.

This module sends no request; ``verify`` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Final

from emberd.catalog import SAME_TEXT, Model, Reference, cosine
from emberd.errors import ServerMismatchError

Vector = tuple[float, ...]

# Two texts of equal length, in letters and in the tokens of common tokenizers, for servers that
# sort or pad by length. They differ in words, not only in their order or case, because models
# without positions and uncased tokenizers rightly give one vector to such texts. They begin alike,
# as two of _OTHERS and the queries of Qwen's card do: if the first token were pooled under causal
# attention, their vectors would be the same.
_EQUAL_LENGTH: Final = ("The dog sleeps on the sofa.", "The cat sleeps on the lawn.")
_OTHERS: Final = (
    "Open the file and read it.",
    "Open the window, please.",
    "Rain",
    "A server of embeddings gives every text a vector of its own.",
)

ALIKE: Final = 0.9999
"""Cosine of two texts above which their vectors are the same. Rounding to bfloat16 moves a vector
by less than that; the different texts of tiny models with random weights stay below it."""

PROMPT_QUESTION: Final = "emberd asks: does this route add a prompt to each text?"
"""A text that emberd's gateway refuses under a name whose texts get a prompt from it. A proxy hides
which server is behind it, but passes the refusal on. Other servers embed it as any text."""

_SIMILARITY_TOLERANCE: Final = 0.05
"""How far a similarity may be from the printed one. In public reports, vLLM in bfloat16 and a Q8_0
file are within 0.002. If rounding to 4 bits turns each vector by a cosine of 0.97, in directions
that are independent, it lowers a similarity of 0.76 by 0.045."""

_SHOWN: Final = 18


def texts(model: Model) -> list[str]:
    """Return the texts; those with printed similarities are among them."""
    known = model.reference
    return [*_EQUAL_LENGTH, *((*known.queries, *known.documents) if known else _OTHERS)]


def check(url: str, model: Model, together: Sequence[Vector], alone: Sequence[Vector]) -> None:
    """Raise if the vectors of ``texts`` cannot be those of the model.

    Args:
        url: Root of the server, for the text of the error.
        model: The model.
        together: Their vectors from requests of several texts; only the first ones, or none, if the
            server limited the rate, or if a request may have one text only.
        alone: Their vectors from a request each; only the first ones if it limited the rate.

    Raises:
        ServerMismatchError: They cannot; the text says what was seen.
    """
    sent = texts(model)
    for index, pair in enumerate(zip(together, alone, strict=False)):
        if (found := cosine(*pair)) >= SAME_TEXT:
            continue
        is_like = (i for i, each in enumerate(alone) if cosine(pair[0], each) >= SAME_TEXT)
        what = f"has another vector among the others than alone (cosine {found:.4f})"
        if (other := next(is_like, None)) is not None:
            what = f"has the vector of text {other}: the vectors are in the wrong order"
        raise ServerMismatchError(
            f"{url} computes requests with several texts wrongly: text {index} of {len(sent)} "
            f"({_shown(sent[index])}) {what}. Update the server, or use another one; if it is a "
            f"router, put servers of one model behind it."
        )
    for vectors in (alone, together):
        for one, other in combinations(range(len(vectors)), 2):
            if (found := cosine(vectors[one], vectors[other])) > ALIKE:
                raise ServerMismatchError(
                    f"{url} returns the same vector for two texts (cosine {found:.5f} for "
                    f"{_shown(sent[one])} and {_shown(sent[other])}): it does not read the texts, "
                    f"or pools a token that does not depend on them. Start it with the model's "
                    f"own pooling, or use another server."
                )
    if model.reference is not None and len(alone) == len(sent):
        _compare(url, model, model.reference, alone[len(_EQUAL_LENGTH) :])


def _compare(url: str, model: Model, printed: Reference, vectors: Sequence[Vector]) -> None:
    queries, documents = vectors[: len(printed.queries)], vectors[len(printed.queries) :]
    for row, query in enumerate(queries):
        for column, document in enumerate(documents):
            found, known = cosine(query, document), printed.similarities[row][column]
            if not abs(found - known) <= _SIMILARITY_TOLERANCE:
                raise ServerMismatchError(
                    f"{url} does not compute the vectors of {model.name}: the similarity of "
                    f"{_shown(printed.queries[row])} and {_shown(printed.documents[column])} is "
                    f"{found:.4f}, and the model card prints {known:.4f} (tolerance "
                    f"{_SIMILARITY_TOLERANCE}). It has other weights, another pooling or another "
                    f"attention mask. Serve the original model with last-token pooling; for a "
                    f"fine-tuned one, give its folder or its own name as model=."
                )


def _shown(text: str) -> str:
    return repr(text if len(text) <= 2 * _SHOWN else f"{text[:_SHOWN]}...{text[-_SHOWN:]}")
