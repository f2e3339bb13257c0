"""What the files in ``deploy/`` say: image, Compose services, Kubernetes objects, systemd units."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

from source_tree import ROOT

DEPLOY: Final = ROOT / "deploy"
DOCKER: Final = DEPLOY / "docker"
COMPOSE: Final = DEPLOY / "compose/compose.yaml"
KUBERNETES: Final = DEPLOY / "kubernetes"
SYSTEMD: Final = DEPLOY / "systemd"

BASE: Final = "base"
PER_NODE: Final = "overlays/one-server-per-node"
ROUTED: Final = "overlays/many-behind-router"
KUSTOMIZATIONS: Final = (BASE, PER_NODE, ROUTED)

_WORKLOADS: Final = ("Deployment", "DaemonSet", "StatefulSet")
_TOOL_S: Final = 60.0

Document = dict[str, Any]


def run_tool(
    name: str, *arguments: str | Path, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program that the tools of the tests brought into this environment."""
    return subprocess.run(
        [Path(sys.prefix, "bin", name), *arguments],
        capture_output=True,
        text=True,
        timeout=_TOOL_S,
        env={**os.environ, **(environment or {})},
    )


# ---------------------------------------------------------------- images


@cache
def instructions(name: str) -> tuple[tuple[str, str], ...]:
    """Return the instructions of the last stage of a Dockerfile, with their text."""
    text = re.sub(r"^\s*#.*\n", "", (DOCKER / name).read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    pairs = [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]
    last = max(number for number, (word, _) in enumerate(pairs) if word == "FROM")
    return tuple((word, rest) for word, rest in pairs[last:] if word)


def words(name: str, instruction: str) -> list[str]:
    """Return the words of an instruction in JSON form, for instance of ENTRYPOINT."""
    [text] = [rest for word, rest in instructions(name) if word == instruction]
    found: list[str] = json.loads(text[text.index("[") :])
    return found


def variables(name: str) -> dict[str, str]:
    """Return the variables that an image sets, with the defaults of its build arguments."""
    arguments: dict[str, str] = {}
    found: dict[str, str] = {}
    for word, rest in instructions(name):
        if word in ("ARG", "ENV"):
            pairs = dict(pair.split("=", 1) for pair in shlex.split(rest))
            target = arguments if word == "ARG" else found
            target |= {key: _expanded(text, arguments) for key, text in pairs.items()}
    return found


def _expanded(text: str, values: dict[str, str]) -> str:
    """Replace ``${NAME:-DEFAULT}`` as Docker does."""
    return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda m: values.get(m[1]) or m[2], text)


# ---------------------------------------------------------------- Compose and Kubernetes


@cache
def _compose() -> str:
    profiles = ("--profile", "*")
    done = run_tool(
        *("docker-compose", "--file", COMPOSE, *profiles, "config", "--format", "json"),
        environment={"GRAFANA_PASSWORD": "secret"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def compose() -> Document:
    """Return the model of Compose, with everything filled in."""
    model: Document = json.loads(_compose())
    return model


@cache
def rendered(kustomization: str) -> str:
    """Return what a kustomization renders to."""
    done = run_tool("kubectl", "kustomize", KUBERNETES / kustomization)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def objects(kustomization: str) -> list[Document]:
    """Return the objects of a kustomization."""
    return list(yaml.safe_load_all(rendered(kustomization)))


def workloads(kustomization: str) -> list[Document]:
    """Return those of its objects that run pods."""
    return [each for each in objects(kustomization) if each["kind"] in _WORKLOADS]


def named(kustomization: str, kind: str, name: str) -> Document:
    """Return one object of a kustomization."""
    [found] = [
        each
        for each in objects(kustomization)
        if (each["kind"], each["metadata"]["name"]) == (kind, name)
    ]
    return found


# ---------------------------------------------------------------- systemd


def unit(name: str) -> dict[str, list[str]]:
    """Return the settings of a unit, each with its values."""
    found: dict[str, list[str]] = {}
    for line in (SYSTEMD / name).read_text().splitlines():
        if line and line[0] not in "#[":
            key, _, text = line.partition("=")
            found.setdefault(key, []).append(text)
    return found


# ---------------------------------------------------------------- how the gateway is started


@dataclass(frozen=True)
class Entry:
    """How a deployment starts the gateway, asks it and ends it.

    Attributes:
        command: Its command line.
        environment: The variables that it sets.
        probes: Paths by what asks them: startup, readiness, liveness.
        check: The command that asks whether it is ready; empty if there is none.
        before_stop: The command that runs before SIGTERM; empty if there is none.
        grace_s: How long it may take from then on.
        files: Files that it finds, with their content.
    """

    command: tuple[str, ...]
    environment: dict[str, str]
    probes: dict[str, str] = field(default_factory=dict)
    check: tuple[str, ...] = ()
    before_stop: tuple[str, ...] = ()
    grace_s: float = 60.0
    files: dict[str, str] = field(default_factory=dict)


def of_image() -> Entry:
    """``docker run`` without arguments."""
    command = (*words("Dockerfile", "ENTRYPOINT"), *words("Dockerfile", "CMD"))
    check = tuple(words("Dockerfile", "HEALTHCHECK"))
    return Entry(command, variables("Dockerfile"), check=check)


def of_compose() -> Entry:
    """The service of Compose."""
    service = compose()["services"]["emberd"]
    assert "entrypoint" not in service or service["entrypoint"] is None
    return Entry(
        (*words("Dockerfile", "ENTRYPOINT"), *service["command"]),
        variables("Dockerfile") | service["environment"],
        check=tuple(words("Dockerfile", "HEALTHCHECK")),
        grace_s=_seconds(service["stop_grace_period"]),
    )


def of_kubernetes(kustomization: str) -> Entry:
    """The gateway of a kustomization."""
    [workload] = [e for e in workloads(kustomization) if e["metadata"]["name"] == "emberd"]
    pod = workload["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert "command" not in container
    given = {each["name"]: each.get("value", "secret") for each in container["env"]}
    probes = {
        name.removesuffix("Probe"): probe["httpGet"]["path"]
        for name, probe in container.items()
        if name.endswith("Probe")
    }
    [key] = [each["mountPath"] for each in container["volumeMounts"] if each["name"] == "key"]
    return Entry(
        (*words("Dockerfile", "ENTRYPOINT"), *container["args"]),
        variables("Dockerfile") | given,
        probes,
        before_stop=tuple(container["lifecycle"]["preStop"]["exec"]["command"]),
        grace_s=pod["terminationGracePeriodSeconds"],
        files={f"{key}/key": "key-of-the-secret\n"},
    )


def of_systemd() -> Entry:
    """The user unit."""
    settings = unit("emberd-serve.service")
    [command], [grace] = settings["ExecStart"], settings["TimeoutStopSec"]
    return Entry(tuple(shlex.split(command)), {}, grace_s=float(grace))


def _seconds(duration: str) -> float:
    """Return a duration of Compose, such as ``5m0s``."""
    units = {"h": 3600.0, "m": 60.0, "s": 1.0}
    return sum(
        float(number) * units[unit] for number, unit in re.findall(r"(\d+)([hms])", duration)
    )
