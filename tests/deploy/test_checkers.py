"""The checkers of each kind of file, with their strictest settings."""

from __future__ import annotations

import json
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from deploy import manifests
from deploy.manifests import COMPOSE, DOCKER, KUBERNETES, KUSTOMIZATIONS, run_tool

DOCKERFILES = sorted(DOCKER.glob("Dockerfile*"))
# The oldest version with all that is used, and the newest that the schemas have.
VERSIONS = ("1.28", "1.37")
COMPONENTS = ("monitoring", "weights-in-image", "weights-in-pod")
# Kinds of the Prometheus operator, whose schemas no registry has as a Python package.
CUSTOM = ("PodMonitor",)


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_hadolint_finds_nothing(file: Path) -> None:
    done = run_tool("hadolint", "--failure-threshold", "info", file)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_hadolint_sees_what_it_is_for(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM python:latest\nENTRYPOINT emberd serve\n")
    done = run_tool("hadolint", tmp_path / "Dockerfile")
    assert done.returncode == 1
    assert {"DL3007", "DL3025"} <= set(done.stdout.split())


def test_compose_accepts_its_file() -> None:
    services = manifests.compose()["services"]
    assert set(services) == {"emberd", "prometheus", "grafana", "app"}


def test_compose_wants_a_password_for_grafana() -> None:
    done = run_tool("docker-compose", "--file", COMPOSE, "config", "--quiet")
    assert done.returncode == 1
    assert "GRAFANA_PASSWORD" in done.stderr


def test_compose_refuses_an_unknown_key(tmp_path: Path) -> None:
    model = yaml.safe_load(COMPOSE.read_text())
    model["services"]["emberd"]["comand"] = []
    (tmp_path / "compose.yaml").write_text(yaml.safe_dump(model))
    variables = {"GRAFANA_PASSWORD": "secret"}
    done = run_tool(
        *("docker-compose", "--file", tmp_path / "compose.yaml", "config", "--quiet"),
        environment=variables,
    )
    assert done.returncode == 1
    assert "comand" in done.stderr


def _invalid(rendered: str, version: str) -> list[str]:
    found = []
    for each in yaml.safe_load_all(rendered):
        if each["kind"] in CUSTOM:
            continue
        try:
            kubernetes_validate.validate(each, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            found.append(f"{each['kind']} {each['metadata']['name']}: {error.message}")
    return found


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS)
def test_objects_have_the_schema_of_kubernetes(kustomization: str, version: str) -> None:
    assert _invalid(manifests.rendered(kustomization), version) == []


def test_the_schema_refuses_an_unknown_field_and_a_wrong_type() -> None:
    workload = manifests.named(manifests.BASE, "Deployment", "emberd")
    [container] = workload["spec"]["template"]["spec"]["containers"]
    for field, value in (("livenessProb", {}), ("args", "text")):
        changed = json.loads(json.dumps(workload))
        changed["spec"]["template"]["spec"]["containers"] = [{**container, field: value}]
        [problem] = _invalid(yaml.safe_dump(changed), VERSIONS[-1])
        assert "Deployment emberd" in problem


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_component_can_be_added_to_the_base(component: str, tmp_path: Path) -> None:
    # kustomize reads no absolute paths.
    relative = Path(*[".."] * (len(tmp_path.parts) - 1), *KUBERNETES.parts[1:])
    (tmp_path / "kustomization.yaml").write_text(
        yaml.safe_dump(
            {
                "resources": [str(relative / "base")],
                "components": [str(relative / "components" / component)],
            }
        )
    )
    done = run_tool("kubectl", "kustomize", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert _invalid(done.stdout, VERSIONS[-1]) == []
    objects = {each["kind"]: each for each in yaml.safe_load_all(done.stdout)}
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    volumes = {each["name"]: each for each in pod["volumes"]}
    claims = objects.get("PersistentVolumeClaim")
    if component == "monitoring":
        assert "PodMonitor" in objects
        assert len(objects["NetworkPolicy"]["spec"]["ingress"]) == 2
    elif component == "weights-in-pod":
        assert claims is None
        assert set(volumes["weights"]) == {"name", "emptyDir"}
    else:
        assert claims is None
        assert "weights" not in volumes
        mounts = {each["mountPath"] for each in pod["containers"][0]["volumeMounts"]}
        assert "/models" not in mounts
        ports = [p["port"] for e in objects["NetworkPolicy"]["spec"]["egress"] for p in e["ports"]]
        assert ports == [53, 53]
