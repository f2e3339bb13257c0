"""Each deployment's command runs as a plain process, and answers the deployment's probes."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import waiting
from command import Command
from deploy import gateway_process, manifests
from deploy.gateway_process import Placed
from deploy.manifests import BASE, PER_NODE, ROUTED, Entry
from fake_server import QWEN, FakeServer
from ports import free_port

ENTRIES: dict[str, Callable[[], Entry]] = {
    "image": manifests.of_image,
    "compose": manifests.of_compose,
    "kubernetes": lambda: manifests.of_kubernetes(BASE),
    "one-server-per-node": lambda: manifests.of_kubernetes(PER_NODE),
}
# By which name clients address it.
HOSTS = {"image": "127.0.0.1", "compose": "emberd"}
# Compose has a fixed port for the server, which another test may use.
OTHER = {"EMBERD_MODEL": "emberd/demo", "EMBERD_PORT": ""}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folders of all entries in turn, so that they share one server of the model."""
    # Short: a socket is in it.
    folder = tmp_path_factory.mktemp("d")
    yield folder
    Command(folder / "var/lib/emberd/state")("stop")


@pytest.fixture(params=ENTRIES)
def placed(request: pytest.FixtureRequest, folder: Path) -> Placed:
    port = free_port()
    return Placed(ENTRIES[request.param](), folder, port, OTHER)


def _embed(placed: Placed, host: str, text: str) -> int:
    with placed.client(host) as client:
        body = {"model": "emberd/demo", "input": text}
        return client.post("/v1/embeddings", json=body).status_code


def test_it_serves_answers_its_probes_and_ends_within_its_grace_period(
    placed: Placed, request: pytest.FixtureRequest
) -> None:
    host = HOSTS.get(request.node.callspec.params["placed"], "embeddings")
    paths = placed.entry.probes
    if placed.entry.check:
        assert subprocess.run(placed.check, capture_output=True).returncode != 0
    with gateway_process.running(placed, paths.get("startup", "/ready")) as process:
        assert {path: placed.status(path) for path in paths.values()} == dict.fromkeys(
            paths.values(), 200
        )
        if placed.entry.check:
            assert subprocess.run(placed.check, capture_output=True).returncode == 0
        assert _embed(placed, host, "text") == 200
        assert _embed(placed, "pages.example", "text") == 403
        assert placed.status("/v1/models") == 401
        with ThreadPoolExecutor(4) as pool:
            pending = [pool.submit(_embed, placed, host, f"{n} " * 100) for n in range(4)]
            # All have arrived then, and most are not answered.
            waiting.until(lambda: all(each.done() for each in pending) or _in_flight(placed))
            assert gateway_process.stop(placed, process) == 0
            assert {each.result() for each in pending} == {200}
    assert placed.status("/health") is None


def _in_flight(placed: Placed) -> bool:
    with placed.client() as client:
        lines = client.get("/metrics").text.splitlines()
    [line] = [each for each in lines if each.startswith("emberd_gateway_requests_in_flight ")]
    return float(line.split()[1]) == 4


def test_the_gateway_behind_the_router_uses_it_and_keeps_its_state_private(tmp_path: Path) -> None:
    """Kubernetes gives the empty volume of the state the mode 0777."""
    entry = manifests.of_kubernetes(ROUTED)
    with FakeServer(
        model=QWEN, dimensions=1024, api_key=entry.environment["EMBERD_API_KEY"]
    ) as server:
        given = {"EMBERD_BASE_URL": server.url, "EMBERD_MODEL": QWEN}
        placed = Placed(entry, tmp_path, free_port(), given)
        volume = placed.home.parent
        volume.mkdir(parents=True)
        volume.chmod(0o2777)
        with gateway_process.running(placed):
            with placed.client("embeddings") as client:
                body = {"model": QWEN, "input": "text"}
                assert client.post("/v1/embeddings", json=body).status_code == 200
            assert placed.home.stat().st_mode & 0o777 == 0o700
        assert ["text"] in server.embedded


def test_the_application_uses_a_gateway(tmp_path: Path, folder: Path) -> None:
    """The words of the image's entry point, with the environment that Compose gives."""
    service = manifests.compose()["services"]["app"]
    assert service["environment"]["EMBERD_BASE_URL"] == "http://emberd:7475/v1"
    placed = Placed(
        manifests.of_compose(),
        folder,
        free_port(),
        OTHER,
    )
    python, program = manifests.words("Dockerfile.app", "ENTRYPOINT")
    assert (python, Path(program).name) == ("python", "app.py")
    with gateway_process.running(placed):
        given = {
            "EMBERD_MODEL": "emberd/demo",
            "EMBERD_BASE_URL": f"{placed.url}/v1",
            "EMBERD_API_KEY": placed.key,
        }
        command = Command(tmp_path / "home", given)
        done = subprocess.run(
            [*command.line()[:1], manifests.DOCKER / "app.py", "Why does dough grow?"],
            input="Bread rises because yeast makes gas.\nA lock lifts boats.\n",
            env=command.environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert (done.stdout, done.returncode) == ("Bread rises because yeast makes gas.\n", 0)
