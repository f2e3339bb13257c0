"""Processes in different network namespaces, which reach different ports under the same number."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from emberd.verified_manager import Manager
from homes import Stub

_LOOK = """
import sys
from emberd.verified_manager import Manager
from emberd.settings import ServerSpec
from homes import QUICK
manager = Manager(sys.argv[1], timing=QUICK)
spec = ServerSpec(model=sys.argv[2], engine="stubs.engine")
print(manager.find(spec), manager.status(), manager.stop())
"""


def _in_another_network(*arguments: str) -> subprocess.CompletedProcess[str]:
    rootless = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return subprocess.run(
        ["unshare", "--net", *rootless, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has network namespaces")
def test_server_of_another_network_namespace_is_neither_used_nor_ended(
    manager: Manager, stub: Stub, home: Path
) -> None:
    if _in_another_network("true").returncode:
        pytest.skip("no network namespace can be made here")
    spec = stub()
    server = manager.ensure(spec)
    looked = _in_another_network(sys.executable, "-c", _LOOK, str(home), spec.model)
    assert looked.stdout.split() == ["None", "[]", "[]"], looked.stderr
    assert manager.is_current(server)
    assert manager.ensure(spec).start_id == server.start_id
