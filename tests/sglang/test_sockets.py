"""Which sockets the real SGLang opens, and who can connect to them."""

from __future__ import annotations

import os
import socket
from ipaddress import ip_address
from pathlib import Path

import psutil

import leftovers
from emberd import Embedder


def test_all_sockets_of_a_server_are_on_loopback_or_in_a_private_folder(
    embedder: Embedder, shared_home: Path
) -> None:
    embedder.embed_query("so that it runs")
    tcp, unix = [], []
    for process in leftovers.find([str(shared_home)]):
        for each in process.net_connections("all"):
            if each.family == socket.AF_UNIX:
                unix += [each.laddr] if each.laddr else []
            elif each.status == psutil.CONN_LISTEN:
                tcp.append((process.name(), each.laddr.ip, each.laddr.port))
    print("", *sorted(tcp), *sorted(unix), sep="\n")
    assert tcp
    assert all(ip_address(ip).is_loopback for _, ip, _ in tcp)
    assert unix
    for path in unix:
        folder = os.stat(Path(str(path)).parent)
        assert (folder.st_uid, folder.st_mode & 0o077) == (os.geteuid(), 0)
