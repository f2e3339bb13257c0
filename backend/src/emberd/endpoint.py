"""A server's address: its URL, its key, and the listening socket that was verified."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from emberd.catalog import EMBED, RERANK
from emberd.errors import SettingError
from emberd.system.listeners import Listener


@runtime_checkable
class Secret(Protocol):
    """A text that is not shown when printed, such as pydantic's ``SecretStr``."""

    def get_secret_value(self) -> str:
        """Return the text."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A verified server to send texts to.

    Attributes:
        url: Root of the server, without ``/v1`` and trailing slash.
        model: The name under which the server serves the model; sent with each request.
        dimensions: Length of its native vectors.
        context_tokens: Longest text that it accepts, in tokens; None if it does not say.
        api_key: Its key; None if it requires none. Never printed.
        server: Kind of server, in one word, for messages.
        listener: The verified listening socket, against which each new connection is checked
            before anything is sent. None for a server on another machine.
        canary: The vectors of the verification texts, each embedded in a separate request, with
            which a restarted server is compared; empty if not kept.
        counts_exactly: Whether the tokens that its tokenizer route gave for a text were as many as
            it read when it embedded that text.
        trims: Whether it may remove white space at the ends of a text before it tokenizes it.
        trims_note: Why that is not known; empty if it is.
        cuts: Whether it may cut a text that is too long instead of refusing it.
        cuts_note: Why that is not known, although it was tried.
        most_texts: Most texts that it accepts in a request; None if it does not say.
        labels: For a server of a reranker: the tokens of "yes" and "no"; a score is the probability
            of the first. Empty for a server of embeddings.
        scores_route: For a reranker: the route that gives scores, which tells their form.
        tail: For a reranker: the tokens with which each prompt ends.
        needs_ids: For a reranker: whether it must be sent token ids, because its tokenizer would
            add tokens to a prompt.
        on_cpu: Whether it computes on a CPU, as far as it says.
        notes: What the verification showed that users of the server should know.
    """

    url: str
    model: str
    dimensions: int
    context_tokens: int | None = None
    api_key: str | None = field(default=None, repr=False)
    server: str = "unknown"
    listener: Listener | None = None
    canary: tuple[tuple[float, ...], ...] = field(default=(), repr=False, compare=False)
    counts_exactly: bool = field(default=False, compare=False)
    trims: bool = field(default=False, compare=False)
    trims_note: str = field(default="", compare=False)
    cuts: bool = field(default=False, compare=False)
    cuts_note: str = field(default="", compare=False)
    most_texts: int | None = field(default=None, compare=False)
    labels: tuple[int, ...] = ()
    scores_route: str = ""
    tail: tuple[int, ...] = ()
    needs_ids: bool = False
    on_cpu: bool = field(default=False, compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def base_url(self) -> str:
        """The URL for OpenAI clients, with ``/v1``."""
        return f"{self.url}/v1"

    def batch_size(self, wanted: int) -> int:
        """Return how many texts a request has at most, of which the caller wants ``wanted``."""
        return min(wanted, self.most_texts or wanted)

    @property
    def task(self) -> str:
        """What its model is used for: ``"embed"`` or ``"rerank"``."""
        return RERANK if self.labels else EMBED


def root_url(url: object, name: str = "base_url") -> str:
    """Return ``url`` without a trailing slash or ``/v1``.

    Args:
        url: What was given.
        name: Where it was given, for the error.

    Raises:
        SettingError: It is not an http or https URL, or has a part that may contain secrets, which
            would appear in logs and errors.
    """
    if not isinstance(url, str):
        raise SettingError(f"{name} is of type {type(url).__name__}, but must be a string.")
    # Checked first, because the other errors repeat the URL.
    if "@" in url:
        raise SettingError(
            f"{name} contains a user name or password. Omit them, and pass api_key=, or "
            f"your own client (client=) for another way to log in."
        )
    if "?" in url or "#" in url:
        raise SettingError(
            f"{name} contains a query (?) or a fragment (#). Leave it out, and pass your own "
            f"client (client=) if the server needs it."
        )
    bare = url.strip().rstrip("/").removesuffix("/v1").rstrip("/")
    if not bare.startswith(("http://", "https://")) or bare.endswith("//"):
        raise SettingError(
            f"{name}={url!r} is not an http(s) URL. Write it like http://127.0.0.1:30000/v1."
        )
    return bare


def is_same_origin(one: str | None, other: str | None) -> bool:
    """Return whether two URLs, made by ``root_url``, have the same scheme, host and port.

    An explicit default port counts as another one. None is no origin.
    """
    if one is None or other is None:
        return False
    origins = {tuple(url.casefold().split("/", 3)[:3]) for url in (one, other)}
    return len(origins) == 1


def read_key(given: object) -> str | None:
    """Return a key that a header can contain; None for a blank one.

    Raises:
        SettingError: It is not such a key; the error does not contain it.
    """
    if isinstance(given, Secret):
        given = given.get_secret_value()
    if not isinstance(given, str):
        raise SettingError(f"api_key is of type {type(given).__name__}, but must be a string.")
    key = given.strip()
    if not all("!" <= character <= "~" for character in key):
        raise SettingError(
            "api_key contains a space, a line break or a non-ASCII character, which an HTTP header "
            "cannot contain. Check that exactly the key was copied."
        )
    return key or None
