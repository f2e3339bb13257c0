"""``emberd serve``: the gateway, in the foreground or in the background."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from emberd import env
from emberd.catalog import EMBED, RERANK
from emberd.cli import downloads, options, output
from emberd.env import Places
from emberd.errors import SettingError
from emberd.gateway import DEFAULT_HOST, DEFAULT_PORT
from emberd.model_card import may_rerank
from emberd.settings import DEFAULT_MODEL, Settings, StartOptions
from emberd.verified_manager import Manager

if TYPE_CHECKING:
    from emberd.embedder import Embedder
    from emberd.reranker import Reranker

_FOLDER: Final = "gateway"  # in the home

Models = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="MODEL...",
        help="Models to serve, embedding models and rerankers. Default: EMBERD_MODEL, else "
        f"{DEFAULT_MODEL}; and EMBERD_RERANK_MODEL if it is set.",
    ),
]
Task = Annotated[
    str | None,
    typer.Option(
        "--task",
        metavar="NAME",
        help="embed or rerank: what the models do whose files do not say it.",
    ),
]
Host = Annotated[
    str,
    typer.Option("--host", metavar="ADDRESS", help="Address of the TCP socket."),
]
Port = Annotated[
    int,
    typer.Option("--port", min=0, max=65_535, help="Port of the TCP socket; 0 for any free one."),
]
Socket = Annotated[
    Path | None,
    typer.Option(
        "--socket",
        metavar="PATH",
        help="Unix socket. Default: gateway/emberd.sock in EMBERD_HOME.",
    ),
]
NoTcp = Annotated[bool, typer.Option("--no-tcp", help="Listen only on the Unix socket.")]
NoSocket = Annotated[bool, typer.Option("--no-socket", help="Listen only on TCP.")]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--key-file",
        metavar="FILE",
        help="File with the keys of clients, one a line. Default: EMBERD_SERVE_KEY, else "
        "a key that is created in gateway/key in EMBERD_HOME.",
    ),
]
AllowHost = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-host",
        metavar="NAME",
        help="A name in the URL of clients, besides localhost and IP addresses. Can be repeated.",
    ),
]
Cache = Annotated[
    str | None,
    typer.Option("--cache", metavar="URL", help="Cache of vectors: sqlite, or a URL."),
]
Preload = Annotated[
    bool,
    typer.Option(
        "--preload",
        help="Start the servers of all models now; /ready answers 503 until they are ready.",
    ),
]
Background = Annotated[
    bool,
    typer.Option(
        "--background",
        "-b",
        help="Keep one gateway running in the background, and return when it is ready.",
    ),
]
Replace = Annotated[
    bool,
    typer.Option(
        "--replace",
        help="With --background: replace a gateway that runs there, without a lost request.",
    ),
]
Yes = Annotated[
    bool, typer.Option("--yes", "-y", help="Download missing engines and weights without asking.")
]
# Passed by the supervisor of a gateway in the background.
Descriptors = Annotated[list[int] | None, typer.Option("--descriptor", hidden=True)]
TakesOver = Annotated[bool, typer.Option("--takes-over", hidden=True)]
ReadyDescriptor = Annotated[int | None, typer.Option("--ready-descriptor", hidden=True)]


def serve(
    models: Models = None,
    task: Task = None,
    host: Host = DEFAULT_HOST,
    port: Port = DEFAULT_PORT,
    socket: Socket = None,
    no_tcp: NoTcp = False,
    no_socket: NoSocket = False,
    key_file: KeyFile = None,
    allow_host: AllowHost = None,
    cache: Cache = None,
    idle_timeout: options.IdleTimeout = None,
    start_timeout: options.StartTimeout = None,
    preload: Preload = False,
    background: Background = False,
    replace: Replace = False,
    yes: Yes = False,
    as_json: options.AsJson = False,
    descriptors: Descriptors = None,
    takes_over: TakesOver = False,
    ready_descriptor: ReadyDescriptor = None,
) -> None:
    """Serve models at one stable address, with the API of OpenAI.

    Runs in the foreground until SIGTERM or Ctrl-C. With --background, one gateway for this
    EMBERD_HOME is started, unless it runs already, and it is replaced if it ends:
    `emberd status` shows it, `emberd logs gateway` shows its log, `emberd stop gateway` ends it.

    The first request for a model finds or starts its server, which stops when it is idle; the
    gateway stays.

    Clients name a model as qwen3-embedding-4b for documents and qwen3-embedding-4b:query for
    queries. @768 cuts the vectors, ?task=code chooses a task. Rerankers answer at /v1/rerank.

    Only the models that are named here are served. What they need on this machine is downloaded
    now, after a question, and never because of a request.

    Listens on a Unix socket for this user and on TCP for clients with the key.
    """
    if (replace or as_json) and not background:
        raise SettingError(
            f"--{'replace' if replace else 'json'} is for --background. Add --background, or omit "
            f"it."
        )
    key = env.text(env.SERVE_KEY)
    if not background:
        os.environ.pop(env.SERVE_KEY, None)  # child processes do not need it
    given = {"cache": cache, "idle_timeout": idle_timeout, "start_timeout": start_timeout}
    users = _users(
        _named(models, task), {field: value for field, value in given.items() if value is not None}
    )
    # Imported late: the other subcommands do not need a web server.
    try:
        from emberd.gateway.addresses import Addresses
        from emberd.gateway.run import GatewayOptions, run
    except ImportError as error:
        raise SettingError(
            f"emberd serve needs a package that is not installed ({error}). "
            f"Run: pip install 'emberd[serve]'"
        ) from error
    for user in users:
        with options.errors_for(user.settings.task):
            _download(user.settings, assume_yes=yes)
    places = Addresses(
        Path(env.home_folder()) / _FOLDER,
        host,
        None if no_tcp else port,
        None if socket is None else socket.absolute(),
        not no_socket,
        tuple(descriptors or ()),
    )
    if not background:
        hosts = tuple(allow_host or ())
        run(
            users,
            GatewayOptions(places, key, key_file, hosts, preload, takes_over, ready_descriptor),
        )
        return
    from emberd.cli import serve_background  # late, to keep the other subcommands fast

    words = {
        "task": task,
        "host": host if host != DEFAULT_HOST else None,
        "port": port if port != DEFAULT_PORT else None,
        "socket": places.socket,
        "no_tcp": no_tcp,
        "no_socket": no_socket,
        "key_file": None if key_file is None else key_file.absolute(),
        "allow_host": sorted(allow_host or ()),
        "preload": preload,
        **given,
    }
    serve_background.start(
        options.resolve_models(models, None) if models else [],
        words,
        [user.settings for user in users],
        places,
        replaces=replace,
        as_json=as_json,
    )


def _named(models: list[str] | None, task: str | None = None) -> list[tuple[str | None, str]]:
    """Return the models to serve with their tasks; None is the model of the environment.

    Args:
        models: The models as given on the command line.
        task: What those of them do whose files do not say it.

    Raises:
        SettingError: It is not known what a model does, or the task contradicts its files.
    """
    if not models:
        if task is not None:
            raise SettingError(
                f"--task {task} is for models of the command line. Name one, or omit --task: "
                f"EMBERD_MODEL embeds, and EMBERD_RERANK_MODEL is a reranker."
            )
        has_reranker = env.text(env.setting_variable("model", RERANK)) is not None
        return [(None, EMBED), *([(None, RERANK)] if has_reranker else [])]
    # What a model is may be known only from its files.
    kinds = {each: options.settings(model=each, embeds=False, fetches=True) for each in models}
    unsaid = [each for each in models if may_rerank(each)]
    if unsaid and task is None:
        # An embedder would take a reranker's folder too, and its vectors would be of no use.
        raise SettingError(
            f"The files of {unsaid[0]} do not say whether it embeds texts or scores documents. Add "
            f"--task {EMBED} or --task {RERANK}."
        )
    for each in unsaid or models:
        if task is not None:
            kinds[each] = options.settings(model=each, embeds=False, task=task)
    return [(each, kinds[each].task) for each in models]


def _users(named: list[tuple[str | None, str]], given: dict[str, Any]) -> list[Embedder | Reranker]:
    """Return what uses each model; the servers of several models are planned for one GPU.

    Raises:
        SettingError: A setting cannot be used.
    """
    if "cache" in given and EMBED not in (task for _, task in named):
        # Nothing would check it, and it may contain a password.
        raise SettingError("--cache is for vectors, and only rerankers are served. Omit --cache.")
    users = [_user(name, task, given) for name, task in named]
    own = [each.settings.model for each in users if each.settings.base_url is None]
    # A value of the environment also says that they are not to share one.
    if not own[1:] or env.text(env.SHARE_GPU) is not None:
        return users
    manager = Manager(share_gpu=own)
    return [_user(name, task, given, manager) for name, task in named]


def _user(
    name: str | None, task: str, given: dict[str, Any], manager: Manager | None = None
) -> Embedder | Reranker:
    from emberd.embedder import Embedder
    from emberd.reranker import Reranker

    with options.errors_for(task):
        if task == EMBED:
            return Embedder(name, manager=manager, **given)
        # A cache holds vectors only.
        without = {field: value for field, value in given.items() if field != "cache"}
        return Reranker(name, manager=manager, **without)


def _download(settings: Settings, *, assume_yes: bool) -> None:
    """Download what a server of a model lacks here, so that no request has to.

    Raises:
        DownloadNeededError: It was not allowed.
        HubError: The weights cannot be downloaded.
        InstallError: The engine cannot be installed.
    """
    if settings.base_url is not None:
        return
    settings.fetch_card()  # engines refuse a model by what its files say
    settings.check_task()
    found = downloads.find(settings.spec, StartOptions.resolve(task=settings.task))
    if found is not None and Manager().find(settings.spec, api_key=settings.api_key) is None:
        may = assume_yes or Places.resolve().auto_install
        with output.ProgressLine() as line:
            found.obtain(lambda text: line.show(text, text.partition(":")[0]), assume_yes=may)
