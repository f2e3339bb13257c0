"""``emberd pull``: downloads what a server needs, before it is started."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Final

import typer

from emberd import engines, hub_weights, installs, model_files, modelscope_weights
from emberd.cli import options, output
from emberd.engines import Engine
from emberd.engines.base import EnvironmentEngine
from emberd.env import Places
from emberd.errors import NoEngineError, SettingError
from emberd.settings import ServerSpec
from emberd.system.disk_space import in_words

_HUB: Final = "hub"
_MODELSCOPE: Final = "modelscope"

Source = Annotated[
    str,
    typer.Option(
        "--source",
        metavar="NAME",
        help="hub (the Hugging Face hub, or the mirror in HF_ENDPOINT), or modelscope.",
    ),
]


def pull(
    name: options.ModelName = None,
    model: options.Model = None,
    engine: options.Engine = None,
    device: options.Device = None,
    revision: options.Revision = None,
    source: Source = _HUB,
    as_json: options.AsJson = False,
) -> None:
    """Download the engine and the weights of a model, so that a start needs no network.

    What is already here is not downloaded again, and an interrupted download of weights goes on
    where it stopped. Only weights in the safetensors format are downloaded. The hash of each file
    is compared with the hub's; a damaged file is deleted.

    With --engine, the engine need not run on this machine: an image for GPUs can be built on a
    machine without one.
    """
    if source not in (_HUB, _MODELSCOPE):
        raise SettingError(f"--source {source!r} is not known. Use {_HUB} or {_MODELSCOPE}.")
    settings = options.settings(
        model=options.resolve_model(name, model),
        engine=engine,
        device=device,
        revision=revision,
        embeds=False,
        fetches=source == _HUB,  # engines refuse a model by what its files say
    )
    spec = settings.spec
    with options.errors_for(spec.task):
        chosen = _choose(spec)
    with options.errors_for(spec.task), output.ProgressLine() as line:
        # Asked before the engine is installed, because it may fail.
        takes_weights = isinstance(chosen, EnvironmentEngine) and not (
            model_files.is_folder(spec.model) or model_files.is_path(spec.model)
        )
        listing = None
        if takes_weights and source == _HUB:
            listing = hub_weights.list_files(spec.model, spec.revision)
        installed = _install(chosen, spec, line)
        pulled: dict[str, Any] | None = None
        if listing:
            folder = hub_weights.fetch(
                listing, lambda text: line.show(text, text.partition(":")[0])
            )
            pulled = {"commit": folder.name, "folder": str(folder)}
        elif takes_weights:
            line.clear()  # the package shows its progress bars
            folder = modelscope_weights.fetch(spec.model, spec.revision)
            pulled = {"commit": None, "folder": str(folder)}
    if pulled:
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        pulled = {"name": spec.model, **pulled, "bytes": size}
    if as_json:
        output.write_json({"engine": installed, "model": pulled})
        return
    if installed:
        output.write_line(f"{installed['name']} {installed['version']}: {installed['python']}")
    if pulled:
        verified = f"{in_words(size)}, hashes verified"
        output.write_line(f"{spec.model}: {verified}, in {pulled['folder']}")
    if not installed and not pulled:
        output.write_line(f"{spec.model} needs no download.")
    if pulled and source == _MODELSCOPE:  # the revision is that of the folder
        spec = dataclasses.replace(spec, model=pulled["folder"], revision=None)
    output.write_line(f"Next: {options.command_line('up', spec)}")


def _choose(spec: ServerSpec) -> Engine:
    """Return the engine to download for.

    Raises:
        NoEngineError: None can serve the model: here, or with --engine anywhere.
    """
    if spec.engine:
        engine = engines.load(spec.engine)
        if problem := engine.why_unsupported(spec):
            raise NoEngineError(f"The engine {engine.name} cannot serve {spec.model}: {problem}")
        return engine
    choice = engines.explain(spec)
    if choice.engine is None and choice.installable:
        return engines.load(choice.installable)
    try:
        return choice.engine or engines.choose(spec)
    except NoEngineError as error:
        hint = "To download for another machine, name the engine: --engine sglang"
        raise NoEngineError(f"{error}\n{hint}") from None


def _install(engine: Engine, spec: ServerSpec, line: output.ProgressLine) -> dict[str, Any] | None:
    """Install an engine if it is missing; return which interpreter has it, in its JSON form."""
    if not isinstance(engine, EnvironmentEngine):
        return None
    if missing := engine.missing_environment(spec):
        installs.install(missing, Places.resolve(), line.show)
    found = installs.locate(engine.name)
    return {"name": engine.name, **dataclasses.asdict(found)} if found else None
