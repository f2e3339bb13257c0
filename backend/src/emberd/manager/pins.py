"""What must be seen of a server of somebody else's before it is taken: all that is pinned.

A revision and a number format are told by ``/server_info``. The files of a folder are told by the
path that the server loaded, where that is a folder of this machine, and by its age: what changed
after its start, it does not hold.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from emberd import engines, model_files, probe
from emberd.endpoint import Endpoint
from emberd.errors import SettingError
from emberd.settings import ServerSpec
from emberd.system import listeners

if TYPE_CHECKING:
    import psutil

# A server reads its files some seconds after its start, and that is known to a second or so: the
# kernel counts it from the boot, whose time it has in whole seconds.
_READS_AFTER_S: Final = 2.0
_GIVE_IT: Final = "Give it as base_url to use it all the same"


def contradiction(endpoint: Endpoint, spec: ServerSpec, *, listed: bool = False) -> str | None:
    """Return why a server is not seen to have what ``spec`` pins; None if it is.

    Args:
        endpoint: The verified server.
        spec: What is wanted.
        listed: The user named it, and answers for whatever stands between it and its files.
    """
    return _in_numbers(endpoint, spec) or _in_files(endpoint, spec, listed=listed)


def _in_numbers(endpoint: Endpoint, spec: ServerSpec) -> str | None:
    reply = probe.get(endpoint.url, "/server_info", endpoint.api_key, listener=endpoint.listener)
    answer: Any = reply.json() if reply is not None else None
    told = answer if isinstance(answer, dict) else {}
    pinned = {"revision": spec.revision, "quantization": spec.quantization}
    for name, value in pinned.items():
        have = told.get(name)
        if value is not None and have != value:
            return f"{name} {value} is wanted, and the server says {have or 'nothing about it'}"
    # Without a wanted quantisation, none is accepted.
    if spec.quantization is None and told.get("quantization"):
        return f"it serves the model quantised ({told['quantization']}), which was not asked for"
    return None


def _in_files(endpoint: Endpoint, spec: ServerSpec, *, listed: bool) -> str | None:
    if spec.content is None:
        return None
    url = endpoint.url
    path = probe.model_path(url, endpoint.api_key, listener=endpoint.listener)
    if path is None or not _is_folder_here(url, path):
        return (
            f"it does not show that it serves the files of {spec.model}: it says "
            f"{path or 'nothing of them'}, which is no folder here. {_GIVE_IT}"
        )
    try:
        loaded, changed_s = model_files.content_hash(path), model_files.changed_s(path)
    except SettingError as error:
        return f"what it serves cannot be read: {error} {_GIVE_IT}"
    if loaded != spec.content:
        return f"the files of {path}, which it serves, are not those of {spec.model}"
    return _in_process(url, path, changed_s, listed=listed)


def _in_process(url: str, path: str, changed_s: float, *, listed: bool) -> str | None:
    process = listeners.process_at(url)
    if not listed and (process is None or not _is_server_here(process)):
        return (
            f"whoever listens there is no server that this process can look into (a container, a "
            f"tunnel, a router): whether it holds the files of {path} cannot be seen. {_GIVE_IT}"
        )
    if process is not None and process.create_time() + _READS_AFTER_S < changed_s:
        return f"it was started before the files of {path} changed; restart it"
    return None


def _is_server_here(process: psutil.Process) -> bool:
    import psutil  # late: most processes look at no server of somebody else's

    # What forwards to another machine, or sees other files under the same path, proves nothing.
    kinds = [engines.load(name) for name in engines.NAMES]
    with suppress(psutil.Error, OSError):
        command = process.cmdline()
        same_files = sys.platform != "linux" or _files_of(process.pid) == _files_of("self")
        return same_files and any(kind.recognises(command) for kind in kinds)
    return False


def _files_of(pid: int | str) -> int:
    return os.stat(f"/proc/{pid}/ns/mnt").st_ino


def _is_folder_here(url: str, path: str) -> bool:
    return probe.is_loopback(url) and os.path.isabs(path) and os.path.isdir(path)
