"""What only programs of Debian show: systemd's of the user units, and containers by the kernel."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import waiting
from deploy import gateway_process, manifests
from deploy.gateway_process import Placed
from deploy.manifests import SYSTEMD
from fake_server import QWEN, FakeServer
from ports import free_port
from services.running import program

UNITS = ("emberd-serve.service", "emberd-serve.socket")


@pytest.fixture
def user(tmp_path: Path) -> dict[str, str]:
    """The environment of a user who has installed emberd and the units."""
    venv = tmp_path / "emberd-venv/bin"
    venv.mkdir(parents=True)
    (venv / "emberd").symlink_to(Path(sys.prefix, "bin", "emberd"))
    (tmp_path / "run").mkdir(mode=0o700)
    for name in UNITS:
        shutil.copy(SYSTEMD / name, tmp_path)
    return {**os.environ, "HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path / "run")}


def _verified(folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [
        program("systemd-analyze"),
        "verify",
        "--user",
        *(str(folder / each) for each in UNITS),
    ]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_systemd_accepts_the_units(tmp_path: Path, user: dict[str, str]) -> None:
    done = _verified(tmp_path, user)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("unit", "setting", "instead"),
    [
        ("emberd-serve.service", "KillMode=mixed", "KilMode=mixed"),
        ("emberd-serve.service", "%h/emberd-venv/bin/emberd", "%h/venv/bin/emberd"),
        ("emberd-serve.socket", "SocketMode=0600", "SocketMode=private"),
    ],
)
def test_systemd_sees_a_wrong_setting(
    unit: str, setting: str, instead: str, tmp_path: Path, user: dict[str, str]
) -> None:
    text = (SYSTEMD / unit).read_text()
    assert setting in text
    (tmp_path / unit).write_text(text.replace(setting, instead))
    assert _verified(tmp_path, user).stderr


def test_systemd_rates_the_exposure_of_the_service(user: dict[str, str]) -> None:
    """Options that need a user namespace would improve it, and are left out on purpose."""
    unit = SYSTEMD / "emberd-serve.service"
    command = [program("systemd-analyze"), "security", "--user", "--offline=true", str(unit)]
    done = subprocess.run(command, env=user, capture_output=True, text=True, timeout=60)
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert found, done.stdout + done.stderr
    assert float(found[1]) <= 8.0


@contextlib.contextmanager
def _ended(process: subprocess.Popen[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        process.kill()
        process.wait(20)


def test_the_first_request_starts_the_gateway(tmp_path: Path, user: dict[str, str]) -> None:
    path, address = manifests.unit("emberd-serve.socket")["ListenStream"]
    port = free_port()
    listening = [
        path.replace("%t", user["XDG_RUNTIME_DIR"]),
        f"{address.rpartition(':')[0]}:{port}",
    ]
    with FakeServer(model=QWEN, dimensions=1024) as server:
        more = {
            "EMBERD_HOME": str(tmp_path / "state"),
            "EMBERD_MODEL": QWEN,
            "EMBERD_BASE_URL": server.url,
            "EMBERD_SERVE_KEY": "key",
        }
        placed = Placed(manifests.of_systemd(), tmp_path, port, more)
        command = [word.replace("%h", str(tmp_path)) for word in placed.entry.command]
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(
                [
                    program("systemd-socket-activate"),
                    *(word for each in listening for word in ("--listen", each)),
                    *(f"--setenv={name}={text}" for name, text in more.items()),
                    *command,
                ],
                env=user,
                stderr=log,
            )
        with _ended(process):
            waiting.until(lambda: "Listening on" in (tmp_path / "log").read_text())
            started = psutil.Process(process.pid)
            assert "emberd" not in started.name()
            assert started.children() == []
            with placed.client() as client:
                reply = client.post("/v1/embeddings", json={"model": QWEN, "input": "text"})
            assert reply.status_code == 200
            assert command[0] in started.cmdline()  # in its place
            assert gateway_process.stop(placed, process) == 0


def test_the_end_of_the_container_leaves_no_process(tmp_path: Path) -> None:
    """The image's whole entry point as process 1 of a pid namespace, as in a container."""
    if os.geteuid() != 0:
        pytest.skip("only root creates a pid namespace")
    tini = program("tini")
    port = free_port()
    placed = Placed(manifests.of_image(), tmp_path, port, {"EMBERD_MODEL": "emberd/demo"})
    assert placed.entry.command[:2] == ("tini", "--")
    log = tmp_path / "log"
    with log.open("wb") as output:
        container = subprocess.Popen(
            ["unshare", "--pid", "--fork", "--mount-proc", tini, "--", *placed.command],
            env=placed.environment,
            stdout=output,
            stderr=output,
        )
    with _ended(container):
        waiting.until(lambda: container.poll() is not None or placed.status("/ready") == 200)
        assert container.poll() is None, log.read_text()
        with placed.client() as client:
            body = {"model": "emberd/demo", "input": "text"}
            assert client.post("/v1/embeddings", json=body).status_code == 200
        [init] = psutil.Process(container.pid).children()
        inside = init.children(recursive=True)
        assert any("emberd.serving" in " ".join(each.cmdline()) for each in inside)
        assert all(each.status() != psutil.STATUS_ZOMBIE for each in inside)
        init.send_signal(signal.SIGTERM)
        assert container.wait(60) == 0
        _, alive = psutil.wait_procs(inside, timeout=20)
        assert alive == []


def test_the_init_container_needs_only_the_capabilities_that_it_has(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files to another user")
    workload = manifests.named(manifests.PER_NODE, "DaemonSet", "emberd")
    [container] = workload["spec"]["template"]["spec"]["initContainers"]
    kept = [f"+{name.lower()}" for name in container["securityContext"]["capabilities"]["add"]]
    folders = [tmp_path / each.lstrip("/") for each in container["args"]]
    command = [
        *("setpriv", f"--bounding-set={','.join(['-all', *kept])}", "--inh-caps=-all"),
        *("--no-new-privs", *container["command"], *map(str, folders)),
    ]
    (tmp_path / "var/lib/emberd").mkdir(parents=True)
    for _ in range(2):  # a later pod finds the folders
        subprocess.run(command, check=True, timeout=20)
        facts = [each.stat() for each in folders]
        assert {(each.st_uid, each.st_gid, each.st_mode & 0o777) for each in facts} == {
            (10001, 10001, 0o700)
        }
