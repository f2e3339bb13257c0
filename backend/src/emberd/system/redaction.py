"""Removes keys, tokens and passwords from texts.

emberd itself prints none. This is for texts from elsewhere: a server that repeats the key it was
given, a log line that contains a command, a URL with a password.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Final

Redact = Callable[[str], str]

HIDDEN: Final = "***"

_NAMES: Final = re.compile(
    r"(^|_)(API_?KEY|AUTH|AUTHORIZATION|CREDENTIALS?|KEY|PASS|PASSWD|PASSWORD|PAT|SECRET|TOKEN)S?$|^(MYSQL_PWD|PGPASSWORD)$"
)
_LEAST_CHARACTERS: Final = 5  # shorter ones are no secrets, and occur in ordinary words
_IN_URL: Final = re.compile(r"(\w://)[^/?#\s]*@")
_QUERY: Final = re.compile(r"(?i)([?&][\w-]*(?:auth|key|pass|secret|sig|token)[\w-]*=)[^&\s'\"]+")
_NO_COUNT: Final = r"(?!['\"]?\s*[=: ]\s*\d{1,9}\b)"  # after "token", a number is a count
# Those of tokenizers are no secrets: eos_token, --pad-token and others.
_TOKENIZER: Final = r"(?:bos|cls|eos|pad|sep|unk)", r"(?:mask|stop)", r"(?:audio|image|video)"
# Whole words only: LAUNCHPAD_TOKEN is a secret.
_A_TOKEN: Final = (
    "".join(rf"(?<!(?<![a-z\d]){kind}[ _-])" for kind in (*_TOKENIZER, "special")) + "token"
)
_KEY: Final = "(?:access|api|private|secret)[-_]?key"
_WORDED: Final = re.compile(
    rf"(?i)((?:{_KEY}|password|passwd|secret|{_A_TOKEN}{_NO_COUNT})['\"]?\s*[=:]\s*"
    rf"|--[\w-]*(?:{_KEY}|password|secret|{_A_TOKEN}{_NO_COUNT})[= ]\s*|\bbearer\s+"
    r"|\bauthorization['\"]?\s*[=:]\s*['\"]?basic\s+)"
    r"(?:'(?!None\b)[^'\n]+'|\"(?!None\b)[^\"\n]+\"|['\"]?(?!None\b)[^\s'\",;)&]+['\"]?)"
)
_SECRET_OPTION: Final = re.compile(rf"(?i)--[\w-]*(?:key|passw(?:or)?d|secret|{_A_TOKEN})")
_ORIGIN: Final = re.compile(
    r"(?i)(?:(?P<scheme>[a-z][a-z0-9+.-]*)://)?(?:[^/@\s]*@)?"
    r"(?P<host>[\w-]+(?:\.[\w-]+)*|\[[0-9a-f:]+\])(?P<port>:\d+)?(?=[/?#]|$)"
)
_REST: Final = r"(?:[/?#][^\s'\",;)]*(?<![:.]))?"
_SHAPED: Final = re.compile(
    r"\bhf_[A-Za-z0-9]{8,}|\b(?:sk|ghp|github_pat|glpat|xox[a-z])[-_][A-Za-z0-9_-]{8,}"
)


def redactor(environ: Mapping[str, str] = os.environ, more: Iterable[str] = ()) -> Redact:
    """Return a function that removes secrets from a text.

    Args:
        environ: Its secrets are the values of variables named like one, and passwords in URLs.
        more: Further secrets.
    """
    secrets = {*more}
    for name, text in environ.items():
        if _NAMES.search(name.upper()):
            secrets.add(text.strip())
        for match in _IN_URL.finditer(text):
            user_and_password = match[0].partition("://")[2].rstrip("@")
            secrets.add(user_and_password.partition(":")[2])
    known = [re.escape(text) for text in secrets if len(text) >= _LEAST_CHARACTERS]
    # The longest first: one secret may be the beginning of another.
    values = re.compile("|".join(sorted(known, key=len, reverse=True)) or r"(?!)")

    def redact(text: str) -> str:
        text = values.sub(HIDDEN, text)
        text = _IN_URL.sub(rf"\1{HIDDEN}@", text)
        text = _QUERY.sub(rf"\1{HIDDEN}", text)
        text = _WORDED.sub(rf"\1{HIDDEN}", text)
        return _SHAPED.sub(HIDDEN, text)

    return redact


def shortener(urls: Iterable[str]) -> Redact:
    """Return a function that cuts each of these URLs to its origin: the path may be a secret."""
    shown = {url: origin(url) for url in urls if len(url) >= _LEAST_CHARACTERS}
    # The longest first, with what may follow it: one may be the beginning of another.
    pairs = [
        (re.compile(re.escape(url) + _REST), shown[url])
        for url in sorted(shown, key=len, reverse=True)
        if shown[url] != url
    ]

    def shorten(text: str) -> str:
        for whole, short in pairs:
            text = whole.sub(lambda _, short=short: short, text)  # type: ignore[misc]
        return text

    return shorten


def origin(url: str) -> str:
    """Return ``scheme://host:port`` of a URL, or as much of it as there is."""
    found = _ORIGIN.match(url)
    if found is None or not (found["scheme"] or found["port"]):
        return HIDDEN  # not a URL: it may be a key in the wrong place
    scheme = f"{found['scheme']}://" if found["scheme"] else ""
    return f"{scheme}{found['host']}{found['port'] or ''}"


def words(command: Sequence[str], redact: Redact) -> list[str]:
    """Return the words of a command with its secrets hidden."""
    hidden, shown = set(secrets(command)), []
    for word in command:
        name, equals, value = word.partition("=")
        option = f"{name}={HIDDEN}" if equals and value in hidden else redact(word)
        shown.append(HIDDEN if word and word in hidden else option)
    return shown


def secrets(command: Sequence[str]) -> Iterator[str]:
    """Yield the values of options of a command that are named like secrets."""
    for option, value in pairwise((*command, "")):
        name, equals, own = option.partition("=")
        if not _SECRET_OPTION.fullmatch(name):
            continue
        found = own if equals else value
        if found and (equals or not found.startswith("--")):
            yield found


def host(url: str) -> str:
    """Return host and port of a URL, without user and password."""
    whole = url if "://" in url else f"http://{url}"
    return origin(whole).partition("://")[2] or HIDDEN
