"""Records facts of SGLang's versions from their wheels, as ``tests/sglang_facts.json``.

``python tests/real/record_facts.py WHEEL... > tests/sglang_facts.json``, with the wheels that
``pip download --no-deps sglang==VERSION`` gives. Only names are recorded: options, routes, what
``/model_info`` reports, variables, lines of the log, architectures, and the pinned libraries.
Nothing is run or imported; the sources are parsed. What a version answers on its routes is
recorded from the real server by ``record_routes.py``.
"""

from __future__ import annotations

import ast
import json
import re
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

_ROOT: Final = "sglang/srt/"
_METHODS: Final = ("get", "post", "put", "delete")
_PINS: Final = ("torch", "transformers")

# What emberd sets, and what it searches the log and the metrics for, as far as the sources contain
# the words as they are.
VARIABLES: Final = (
    "SGLANG_CUDA_COREDUMP_BEFORE_CRASH",
    "SGLANG_DISTRIBUTED_INIT_METHOD_OVERRIDE",
    "SGLANG_ENABLE_TP_MEMORY_INBALANCE_CHECK",
    "SGLANG_FLASHINFER_PREFILL_SPLIT_TILE_SIZE",
    "SGLANG_PYSPY_DUMP_BEFORE_CRASH",
    "SGLANG_USE_CPU_ENGINE",
    "SGLANG_USE_PICKLE_IPC",
)
LINES: Final = (
    "Init torch distributed begin",
    "Init parallel begin",
    "Using model weights format",
    "Load weight begin",
    "Load weight end",
    "Memory pool end",
    "DeepGEMM warmup",
    "max_total_num_tokens=",
    "The server is fired up",
    "hit an exception: ",
    "Initialization failed. warmup error",
    "kill_process_tree called",
    "sglang:num_running_reqs",
    "sglang:num_queue_reqs",
    "sglang:num_requests_total",
    "sglang:prompt_tokens_total",
)


def main(wheels: list[str]) -> None:
    """Print the facts of all versions, each kind with the versions that have it."""
    found = {facts["version"]: facts for facts in map(facts_of, wheels)}
    versions = sorted(found, key=lambda version: [int(part) for part in version.split(".")])
    kinds = ("options", "routes", "open", "model_info", "variables", "lines", "architectures")
    told: dict[str, Any] = {
        "how": "parsed from the wheels by tests/real/record_facts.py",
        "versions": versions,
        "pins": {version: found[version]["pins"] for version in versions},
    }
    for kind in kinds:
        names = sorted(set().union(*(found[version][kind] for version in versions)))
        having = {n: [v for v in versions if n in found[v][kind]] for n in names}
        told[kind] = {
            "all": [name for name in names if having[name] == versions],
            "some": {name: having[name] for name in names if having[name] != versions},
        }
    print(json.dumps(told, indent=1))


def facts_of(wheel: str) -> dict[str, Any]:
    """Return the facts of one version."""
    with zipfile.ZipFile(wheel) as archive:
        sources = {
            name.removeprefix(_ROOT): archive.read(name).decode("utf-8-sig")
            for name in archive.namelist()
            if name.startswith(_ROOT) and name.endswith(".py")
        }
        (metadata,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        described = archive.read(metadata).decode()
    entrypoints = {n: text for n, text in sources.items() if n.startswith("entrypoints/")}
    server = ast.parse(sources["entrypoints/http_server.py"])
    everything = "\n".join(sources.values())
    models = (ast.parse(text) for name, text in sources.items() if name.startswith("models/"))
    pins = {
        name: found[1]
        for name in _PINS
        if (found := re.search(rf"^Requires-Dist: {name}==([\d.]+)", described, re.MULTILINE))
    }
    return {
        "version": re.search(r"^Version: (\S+)", described, re.MULTILINE)[1],  # type: ignore[index]
        "pins": {**pins, "cuda": re.search(r"flashinfer_python\[(cu\d+)\]", described)[1]},  # type: ignore[index]
        "options": known_options(sources),
        "routes": {route for text in entrypoints.values() for route in _routes(ast.parse(text))},
        "open": set(re.findall(r'path\.startswith\("([^"]+)"\)', sources["utils/auth.py"])),
        "model_info": set(_reported(server)),
        "variables": {name for name in VARIABLES if re.search(rf"\b{name}\b", everything)},
        "lines": {line for line in LINES if line in everything},
        "architectures": {name for tree in models for name in _entry_classes(tree)},
    }


def _routes(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(attr=verb), args=[ast.Constant(value=str(path)), *_]):
                if verb in _METHODS and path.startswith("/"):
                    yield f"{verb.upper()} {path}"
                for word in node.keywords if verb == "api_route" else ():
                    if word.arg == "methods":
                        yield from (f"{each} {path}" for each in ast.literal_eval(word.value))


def _reported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.AsyncFunctionDef) and node.name == "model_info":
            for inner in ast.walk(node):
                match inner:
                    case ast.Dict(keys=keys):
                        yield from (str(k.value) for k in keys if isinstance(k, ast.Constant))
                    case ast.Subscript(slice=ast.Constant(value=str(key))):
                        yield key


def _entry_classes(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id="EntryClass")], value=value):
                yield from (each.id for each in ast.walk(value) if isinstance(each, ast.Name))


# ------------------------------------------------------------ options


def installed_options(packages: str) -> frozenset[str]:
    """Return the options of the SGLang in a ``site-packages`` folder."""
    root = Path(packages, _ROOT)
    files = [root / "server_args.py", *(root / "arg_groups").rglob("*.py")]
    return known_options(
        {path.relative_to(root).as_posix(): path.read_text("utf-8") for path in files}
    )


def known_options(sources: Mapping[str, str]) -> frozenset[str]:
    """Return the options that a version knows, such as ``--model-path``.

    Until mid-2026 each was added to the parser by a call; since then most are fields with
    annotations. Both are read.

    Args:
        sources: Path below ``srt`` -> text; those of ``server_args.py`` and ``arg_groups`` count.
    """
    names: set[str] = set()
    for path, text in sources.items():
        if path == "server_args.py" or path.startswith("arg_groups/"):
            names.update(_options(ast.parse(text), all_classes="/fields/" in path))
    return frozenset(names)


def _options(tree: ast.Module, *, all_classes: bool) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(attr="add_argument")):
                yield from _option_names(node.args)
            case ast.ClassDef() if node.name == "ServerArgs" or all_classes:
                for field in node.body:
                    match field:
                        case ast.AnnAssign(
                            target=ast.Name(id=name),
                            annotation=ast.Subscript(
                                value=ast.Name(id="A" | "Annotated"), slice=described
                            ),
                        ):
                            yield from _options_of_field(name, described)


def _options_of_field(name: str, described: ast.expr) -> Iterator[str]:
    words = {
        word.arg: word.value
        for node in ast.walk(described)
        if isinstance(node, ast.Call)
        for word in node.keywords
    }
    hidden = words.get("no_cli")
    if isinstance(hidden, ast.Constant) and hidden.value:
        return
    if "cli_name" not in words:
        yield "--" + name.replace("_", "-")
    for key in ("aliases", "cli_name"):
        if key in words:
            yield from _option_names(ast.walk(words[key]))


def _option_names(nodes: Iterable[ast.AST]) -> Iterator[str]:
    for node in nodes:
        match node:
            case ast.Constant(value=str(text)) if text.startswith("--"):
                yield text


if __name__ == "__main__":
    main(sys.argv[1:])
