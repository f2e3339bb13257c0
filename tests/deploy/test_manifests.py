"""What the manifests promise, and that they do not drift from the code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import memory_cards
from deploy import manifests
from deploy.manifests import BASE, KUSTOMIZATIONS, PER_NODE, ROUTED, Document
from emberd import env
from emberd.engines import Launch
from emberd.engines.model_shape import KNOWN
from emberd.engines.sglang.command import flags, variables
from emberd.engines.sglang.memory import plan_memory
from emberd.installs import recipes
from emberd.settings import ServerSpec, Settings, StartOptions
from real import router
from source_tree import ROOT

MODEL = "Qwen/Qwen3-Embedding-4B"


def _pods(kustomization: str) -> Iterator[tuple[str, Document]]:
    for each in manifests.workloads(kustomization):
        yield each["metadata"]["name"], each["spec"]["template"]["spec"]


def _containers(kustomization: str) -> Iterator[tuple[str, Document, Document]]:
    for name, pod in _pods(kustomization):
        for each in (*pod.get("initContainers", ()), *pod["containers"]):
            yield f"{name}/{each['name']}", pod, each


@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS)
def test_every_container_is_restricted(kustomization: str) -> None:
    """As the Pod Security Standard ``restricted`` requires, and with a read-only root."""
    exempt = {"emberd/owner"} if kustomization == PER_NODE else set()
    for name, pod, container in _containers(kustomization):
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False, name
        assert context["readOnlyRootFilesystem"] is True, name
        assert context["capabilities"]["drop"] == ["ALL"], name
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod), name
        if name not in exempt:
            assert "runAsUser" not in context, name
            assert "add" not in context["capabilities"], name
        assert {"cpu", "memory"} <= set(container["resources"]["requests"]), name
        assert "memory" in container["resources"]["limits"], name
    uses = [
        volume
        for _, pod in _pods(kustomization)
        for volume in pod["volumes"]
        if "hostPath" in volume
    ]
    assert bool(uses) == (kustomization == PER_NODE)


@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS)
def test_the_user_is_that_of_the_image(kustomization: str) -> None:
    for name, pod in _pods(kustomization):
        image = "Dockerfile.router" if name == "sglang-router" else "Dockerfile"
        [user] = [rest for word, rest in manifests.instructions(image) if word == "USER"][:1]
        context = pod["securityContext"]
        assert user == f"{context['runAsUser']}:{context['runAsGroup']}"


@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS)
def test_a_pod_has_time_to_answer_the_longest_request(kustomization: str) -> None:
    longest_s = Settings.resolve(model=MODEL).timeout
    for name, pod in _pods(kustomization):
        [container] = pod["containers"]
        _, pause = container["lifecycle"]["preStop"]["exec"]["command"]
        assert pod["terminationGracePeriodSeconds"] >= int(pause) + longest_s + 20, name
        # The Service must have learned that it is gone, by the failing probe or the deletion.
        assert int(pause) >= container["readinessProbe"]["periodSeconds"], name
    assert manifests.of_compose().grace_s >= longest_s
    assert manifests.of_systemd().grace_s >= longest_s


@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS)
def test_every_reference_leads_to_an_object(kustomization: str) -> None:
    objects = manifests.objects(kustomization)
    labels = [
        each["spec"]["template"]["metadata"]["labels"]
        for each in manifests.workloads(kustomization)
    ]

    def selects(selector: dict[str, str]) -> bool:
        return any(selector.items() <= each.items() for each in labels)

    for each in objects:
        spec, name = each["spec"], f"{each['kind']} {each['metadata']['name']}"
        if each["kind"] == "Service":
            assert selects(spec["selector"]), name
        elif each["kind"] == "PodDisruptionBudget":
            assert selects(spec["selector"]["matchLabels"]), name
        elif each["kind"] == "NetworkPolicy":
            assert selects(spec["podSelector"]["matchLabels"]), name
    names = {(each["kind"], each["metadata"]["name"]) for each in objects}
    claimed = {
        volume["persistentVolumeClaim"]["claimName"]
        for _, pod in _pods(kustomization)
        for volume in pod["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert {name for kind, name in names if kind == "PersistentVolumeClaim"} == claimed
    for name, pod, container in _containers(kustomization):
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted <= {volume["name"] for volume in pod["volumes"]}, name
    # Every pod has a policy, so nothing else may connect to it.
    policies = [
        each["spec"]["podSelector"]["matchLabels"]
        for each in objects
        if each["kind"] == "NetworkPolicy"
    ]
    assert all(any(policy.items() <= each.items() for policy in policies) for each in labels)


@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS)
def test_no_service_sets_a_variable_of_emberd_in_other_pods(kustomization: str) -> None:
    """Kubernetes sets NAME_PORT and others for each Service, unless a pod refuses it."""
    for each in manifests.objects(kustomization):
        if each["kind"] == "Service":
            prefix = each["metadata"]["name"].upper().replace("-", "_")
            given = {f"{prefix}_{end}" for end in ("PORT", "SERVICE_HOST", "SERVICE_PORT")}
            assert not given & set(env.VARIABLES)
    assert all(pod["enableServiceLinks"] is False for _, pod in _pods(kustomization))


def test_all_variables_exist() -> None:
    texts = [path.read_text() for path in manifests.DEPLOY.rglob("*") if path.is_file()]
    used = {name for text in texts for name in re.findall(r"\bEMBERD_[A-Z_]+\b", text)}
    assert used - set(env.VARIABLES) == {"EMBERD_IMAGE", "EMBERD_APP_IMAGE"}


def test_gateways_reach_only_the_router_and_servers_only_the_hub() -> None:
    def targets(policy: str) -> set[str]:
        rules = manifests.named(ROUTED, "NetworkPolicy", policy)["spec"]["egress"]
        return {
            str(peer["podSelector"]["matchLabels"]["app.kubernetes.io/name"])
            for rule in rules
            for peer in rule.get("to", ())
            if "podSelector" in peer
        }

    assert targets("emberd") == {"sglang-router"}
    assert targets("sglang-router") == {"sglang"}
    assert targets("sglang") == set()


@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS)
def test_a_gateway_is_ready_only_once_its_model_is_served(kustomization: str) -> None:
    """Otherwise an update would replace the last pod that can answer."""
    [container] = [each for _, _, each in _containers(kustomization) if each["name"] == "emberd"]
    assert "--preload" in container["args"]


@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS)
def test_no_option_is_given_twice(kustomization: str) -> None:
    for name, _, container in _containers(kustomization):
        options = [each for each in container.get("args", ()) if each.startswith("--")]
        assert sorted(options) == sorted(set(options)), name


def test_the_gateway_behind_the_router_needs_no_gpu() -> None:
    [(_, pod)] = [each for each in _pods(ROUTED) if each[0] == "emberd"]
    [container] = pod["containers"]
    assert "nvidia.com/gpu" not in container["resources"]["limits"]
    assert {each["name"] for each in container["volumeMounts"]} == {"home", "key", "tmp"}
    names = {each["name"]: each.get("value") for each in container["env"]}
    service = manifests.named(ROUTED, "Service", "sglang-router")
    [port] = service["spec"]["ports"]
    assert names["EMBERD_BASE_URL"] == f"http://sglang-router:{port['port']}/v1"
    assert names["EMBERD_API_KEY"] is None  # from the secret


def test_the_router_knows_each_server() -> None:
    servers = manifests.named(ROUTED, "StatefulSet", "sglang")["spec"]
    [container] = manifests.named(ROUTED, "Deployment", "sglang-router")["spec"]["template"][
        "spec"
    ]["containers"]
    arguments = container["args"]
    urls = [each for each in arguments if each.startswith("http://")]
    assert urls == [
        f"http://sglang-{number}.{servers['serviceName']}:30000"
        for number in range(servers["replicas"])
    ]
    [install] = [
        rest for word, rest in manifests.instructions("Dockerfile.router") if "pip" in rest
    ]
    assert f"sglang-router=={router.VERSION}" in install.split()


def _grouped(words: list[str]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for word in words:
        if word.startswith("--"):
            name = word
            found[name] = ()
        else:
            found[name] += (word,)
    return found


@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS)
def test_no_secret_is_on_a_command_line(kustomization: str) -> None:
    """Kubernetes replaces $(NAME) in arguments, which every user of a node can read."""
    for name, _, container in _containers(kustomization):
        secret = {each["name"] for each in container.get("env", ()) if "valueFrom" in each}
        words = " ".join((*container.get("command", ()), *container.get("args", ())))
        assert not secret & set(re.findall(r"\$\((\w+)\)", words)), name
    for service in manifests.compose()["services"].values():
        words = " ".join((*(service["entrypoint"] or ()), *(service["command"] or ())))
        assert "secret" not in words  # the password that the test sets


def test_the_router_has_its_key_and_does_not_show_it(tmp_path: Path) -> None:
    python, script, *fixed = manifests.words("Dockerfile.router", "ENTRYPOINT")
    assert (Path(python).name, Path(script).name) == ("python", "router.py")
    package = tmp_path / "sglang_router"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "launch_router.py").write_text(
        "import os, sys\n"
        "def main():\n"
        "    print(sys.argv[1:], open('/proc/self/cmdline').read().split(chr(0)), sep='\\n')\n"
        "    assert 'SGLANG_KEY' not in os.environ\n"
    )
    outputs = []
    for key in ("secret", ""):
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "SGLANG_KEY": key}
        done = subprocess.run(
            [sys.executable, manifests.DOCKER / "router.py", *fixed, "--policy", "round_robin"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout.splitlines())
    given = [*fixed, "--policy", "round_robin"]
    assert outputs[0][0] == str([*given, "--api-key", "secret"])
    assert "secret" not in outputs[0][1]
    assert outputs[1][0] == str(given)


def test_servers_behind_the_router_are_started_as_emberd_starts_them() -> None:
    pod = manifests.named(ROUTED, "StatefulSet", "sglang")["spec"]["template"]["spec"]
    [container] = pod["containers"]
    card = memory_cards.card(24)
    launch = Launch(30_000, "KEY", "ID", "FOLDER", StartOptions(), home="/home")
    plan = plan_memory(card, KNOWN[MODEL], None)
    own = _grouped(
        [word for flag in flags(ServerSpec(MODEL), launch, plan, "F") for word in flag.words]
    )
    given = _grouped(container["args"])
    # Where it listens is the only difference, and where the file with its key is.
    [(folder, file)] = [
        (mount["mountPath"], item["path"])
        for mount in container["volumeMounts"]
        for volume in pod["volumes"]
        if mount["name"] == volume["name"] and "secret" in volume
        for item in volume["secret"]["items"]
    ]
    assert given.pop("--config") == (f"{folder}/{file}",)
    assert (given.pop("--host"), given.pop("--port")) == (("0.0.0.0",), ("30000",))
    for name in ("--host", "--config", "--weight-version"):
        own.pop(name)
    override = "--json-model-override-args"
    assert [each.replace(" ", "") for each in own.pop(override)] == list(given.pop(override))
    assert given == own
    wanted = variables({}, [card], "/tmp/store", "/home", msgpack=True)
    environment = {each["name"]: each.get("value") for each in container["env"]}
    shared = {name: text for name, (text, _) in wanted.items() if name.startswith("SGLANG_")}
    assert shared.items() <= environment.items()
    version = recipes.RECIPES["sglang"].version
    assert f"/opt/engines/sglang-{version}/bin/python" in container["command"]


def test_compose_mounts_files_that_exist() -> None:
    for name, service in manifests.compose()["services"].items():
        for mount in service.get("volumes", ()):
            if mount["type"] == "bind":
                assert mount["read_only"], name
                assert (ROOT / mount["source"]).is_file(), name


def test_compose_publishes_only_on_loopback() -> None:
    ports = [
        port
        for service in manifests.compose()["services"].values()
        for port in service.get("ports", ())
    ]
    assert ports
    assert {port["host_ip"] for port in ports} == {"127.0.0.1"}


def test_compose_gives_the_server_a_gpu_and_shared_memory() -> None:
    service = manifests.compose()["services"]["emberd"]
    devices = service["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"capabilities": ["gpu"], "driver": "nvidia", "count": 1}]
    assert int(service["shm_size"]) >= 2 << 30


def _image_folders() -> dict[str, Any]:
    return manifests.variables("Dockerfile")


def test_what_the_image_writes_is_mounted() -> None:
    """The root of the container is read-only."""
    written = {_image_folders()[name] for name in ("EMBERD_HOME", "HF_HOME", "HOME")}
    service = manifests.compose()["services"]["emberd"]
    compose = {mount["target"] for mount in service["volumes"]} | set(service["tmpfs"])
    for mounts in (
        {mount.partition(":")[0] for mount in compose},
        *(
            {mount["mountPath"] for mount in container["volumeMounts"]}
            for kustomization in (BASE, PER_NODE)
            for name, _, container in _containers(kustomization)
            if name == "emberd/emberd"
        ),
    ):
        for folder in (*written, "/tmp"):
            assert any(f"{folder}/".startswith(f"{mount}/") for mount in mounts), folder


def test_the_image_pins_what_it_is_built_from() -> None:
    for file in manifests.DOCKER.glob("Dockerfile*"):
        text = file.read_text()
        given = dict(re.findall(r"^ARG (\w+_IMAGE)=(\S+)$", text, re.MULTILINE))
        assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) == {f"${{{e}}}" for e in given}
        assert all(re.search(r":\d+\.\d+[\w.]*-\w+", image) for image in given.values())
    images = {service["image"] for service in manifests.compose()["services"].values()}
    assert all(re.search(r":(v?\d+\.\d+\.\d+|local)$", image) for image in images)
