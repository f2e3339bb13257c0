"""Where the gateway listens, and the keys of its clients."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from emberd.endpoint import read_key
from emberd.errors import SettingError, StateFolderError
from emberd.gateway import DEFAULT_HOST, DEFAULT_PORT
from emberd.probe import is_loopback
from emberd.system import atomic_file, file_lock, listening_sockets, ownership

SOCKET_NAME: Final = "emberd.sock"
"""The name of the Unix socket in the gateway's folder."""

_KEY_NAME: Final = "key"
_KEY_WAIT_S: Final = 10.0
_SOCKET_WAIT_S: Final = 0.5  # an orphan reaper may hold the lock for a moment
_SOCKET_MODE: Final = 0o600
_FIRST_DESCRIPTOR: Final = 3  # by sd_listen_fds(3)
_EVERY_ADDRESS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - not to bind to
_ACTIVATION: Final = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")

_log = logging.getLogger("emberd.gateway")


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where to listen, unless systemd or a supervisor passes sockets.

    Attributes:
        folder: The gateway's folder in the home; created if it is missing.
        host: Address of the TCP socket.
        port: Its port, 0 for any free one; None for no TCP socket.
        socket: Path of the Unix socket; None for the one in ``folder``.
        has_socket: Whether there is a Unix socket.
        descriptors: Descriptors of sockets that listen and that a supervisor passed.
    """

    folder: Path
    host: str = DEFAULT_HOST
    port: int | None = DEFAULT_PORT
    socket: Path | None = None
    has_socket: bool = True
    descriptors: tuple[int, ...] = ()


class Listening(NamedTuple):
    """The listening sockets.

    Attributes:
        sockets: All of them.
        release: Removes the path of the Unix socket, which another gateway can then use; called at
            the end at the latest.
    """

    sockets: list[socket.socket]
    release: Callable[[], None]


@contextmanager
def listening(addresses: Addresses) -> Iterator[Listening]:
    """Yield the listening sockets, which are closed at the end of the block.

    Raises:
        SettingError: There is none, or one of them cannot listen.
        StateFolderError: Others can write to the folder of the Unix socket.
    """
    with ExitStack() as stack, ExitStack() as path_in_use:
        found = [listening_sockets.inherit(each) for each in addresses.descriptors]
        found = found or _activated()
        if not found:
            if addresses.has_socket:
                path = addresses.socket or ownership.make_private(addresses.folder) / SOCKET_NAME
                found.append(path_in_use.enter_context(_unix(path)))
            if addresses.port is not None:
                found.append(_tcp(addresses.host, addresses.port))
        if not found:
            raise SettingError("There is no address to listen on. Omit --no-tcp or --no-socket.")
        for each in found:
            stack.callback(each.close)
        yield Listening(found, path_in_use.close)


def shown(listener: socket.socket) -> str:
    """Return the address of a socket as a client needs it."""
    name = listener.getsockname()
    if isinstance(name, str):
        return f"unix:{name}"
    return f"http://{_in_url(name[0])}:{name[1]}/v1"


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def page(listener: socket.socket) -> str | None:
    """Return where a browser on this machine finds the page, in words; None if there is none."""
    name = listener.getsockname()
    if isinstance(name, str) or not is_loopback(f"//{_in_url(name[0])}"):
        return None
    # Not localhost, which may mean another address of which another user has the port.
    host = _EVERY_ADDRESS.get(name[0], name[0])
    url = f"http://{_in_url(host)}:{name[1]}/"
    # Clients of a published port have an address of the bridge.
    return url if host == name[0] else f"{url} (not through a published port of a container)"


def read_keys(folder: Path, given: str | None, file: Path | None) -> tuple[list[str], str]:
    """Return the keys that clients may send, and where they come from in words.

    Args:
        folder: The gateway's folder, for a key that is created.
        given: The key in the environment; None if there is none.
        file: A file with a key in each line; None if there is none.

    Raises:
        SettingError: There is no usable key in it.
        StateFolderError: Another user can have written the file.
        OSError: The file cannot be read.
    """
    if given is not None and file is not None:
        raise SettingError("Give EMBERD_SERVE_KEY or --key-file, not both.")
    if given is not None:
        return [_checked(given, "EMBERD_SERVE_KEY")], "EMBERD_SERVE_KEY"
    if file is None:
        file = _made_key(ownership.make_private(folder) / _KEY_NAME)
    keys = [_checked(line, str(file)) for line in _read(file).splitlines() if line.strip()]
    if not keys:
        raise SettingError(f"{file} contains no key. Write one into it, a key in each line.")
    return keys, str(file)


def _made_key(file: Path) -> Path:
    """Create the file of the key if there is none; gateways that start at once get one key."""
    if not file.exists():
        with file_lock.held(file.with_name(f"{file.name}.lock"), _KEY_WAIT_S):
            if not file.exists():
                atomic_file.write(file, f"{secrets.token_urlsafe(32)}\n".encode())
    return file


def _read(file: Path) -> str:
    """Return the text of a file with keys, which no other user but root can have written."""
    # Kubernetes puts a link where a secret is: the file that it leads to is checked.
    with open(ownership.open_file(os.path.realpath(file)), "rb") as opened:
        facts = os.fstat(opened.fileno())
        ownership.check(file, facts, by_root=True, so="so its keys are not accepted")
        if facts.st_mode & stat.S_IROTH:
            _log.warning("%s can be read by every user. Run: chmod o-r %s", file, file)
        content = opened.read()
    try:
        return content.decode()
    except UnicodeDecodeError:
        # Without the cause, which contains the keys.
        raise SettingError(
            f"{file} is not text in UTF-8. Write the keys into it, a key in each line."
        ) from None


def _checked(text: str, source: str) -> str:
    try:
        key = read_key(text)
    except SettingError as error:
        raise SettingError(str(error).replace("api_key", f"The key in {source}", 1)) from None
    if key is None:
        raise SettingError(f"The key in {source} is blank. Give one, or leave it out.")
    return key


def _activated() -> list[socket.socket]:
    """Return the sockets that systemd passes to this process."""
    given = [os.environ.pop(name, "") for name in _ACTIVATION]  # not for child processes
    if given[1] != str(os.getpid()) or not given[0].isdecimal():
        return []
    try:
        passed = range(_FIRST_DESCRIPTOR, _FIRST_DESCRIPTOR + int(given[0]))
        return [listening_sockets.inherit(descriptor) for descriptor in passed]
    except OSError as error:
        raise SettingError(
            f"A descriptor that systemd passed is not a listening stream socket ({error}). Use "
            f"ListenStream= with Accept=no in the socket unit."
        ) from error


def _tcp(host: str, port: int) -> socket.socket:
    try:
        return listening_sockets.listen(host, port)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SettingError(
            f"Cannot listen on {host} port {port}: {reason}. Choose another --port, or stop what "
            f"uses it. The address is a number, such as {DEFAULT_HOST}."
        ) from error


@contextmanager
def _unix(path: Path) -> Iterator[socket.socket]:
    # Every user who can write to the folder can put another socket in place of this one.
    ownership.check_folder(path.parent, instead="Use --socket with a folder of your own.")
    lock = path.with_name(f"{path.name}.lock")
    try:
        with file_lock.held(lock, _SOCKET_WAIT_S, note=f"process {os.getpid()}"):
            listener = _bind(path)
            try:
                yield listener
            finally:
                path.unlink(missing_ok=True)
    except file_lock.LockHeldError as error:
        raise SettingError(
            f"Another `emberd serve` ({error.holder}) uses {path}. Use that one, stop it, or give "
            f"another --socket."
        ) from error


def _bind(path: Path) -> socket.socket:
    """Return a socket that listens at ``path``; the lock is held, so an old one is of no use."""
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise StateFolderError(
                f"{path} exists and is not a socket. Remove it, or use --socket."
            )
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(os.fspath(path))
        path.chmod(_SOCKET_MODE)  # nobody can connect before it listens
        listener.listen()
    except OSError as error:
        listener.close()
        raise SettingError(
            f"Cannot listen on {path}: {error.strerror or error}. The path of a Unix socket has at "
            f"most 107 bytes: give a shorter one with --socket, or omit it with --no-socket."
        ) from error
    return listener
