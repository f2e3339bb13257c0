"""Whatever the environment is like: the public entry points work, or raise an error of emberd's.

One process for each environment; in it, one call of each entry point. What only emberd reads is
tried in forks of a process that has imported it; the rest in interpreters that start that way.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

import leftovers
import waiting
from command import run_program
from emberd import env

CALLS: Final = r"""
import contextlib, io, json, os, sys, traceback, warnings
{before}
outcomes = {{}}

def record(name, call):
    try:
        outcomes[name] = ["worked", repr(call())[:200]]
    except BaseException as error:
        from emberd.errors import EmberdError
        kind = "refused" if isinstance(error, EmberdError) else "escaped"
        outcomes[name] = [kind, "".join(traceback.format_exception(error))[-2000:]]

def embedder():
    import emberd
    return len(emberd.Embedder(**settings).embed_query("hello"))

def manager():
    import emberd
    from emberd.settings import ServerSpec
    return emberd.Manager().ensure(ServerSpec(settings["model"], engine=settings["engine"])).origin

def command(*arguments):
    from emberd.cli.app import run
    err = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="surrogateescape")
    with contextlib.redirect_stderr(err):
        code = run([*arguments])
    err.flush()
    said = err.buffer.getvalue().decode("utf-8", "replace")
    # 3: nothing is running; doctor reports what it found, and ends with 1 if that is a problem.
    is_told = code in (0, 3) or "error:" in said or arguments[0] == "doctor"
    if "unexpected" in said or not is_told:
        raise RuntimeError(code, said)
    return code, said

options = ("--engine", "stubs.engine", "--start-timeout", "20")
settings = dict(model="stub/ok", engine="stubs.engine", query_instruction="",
                document_instruction="", start_timeout=20, timeout=10)
record("embedder", embedder)
record("manager", manager)
record("up", lambda: command("up", "stub/ok", *options))
record("env", lambda: command("env", "stub/ok", *options))
record("status", lambda: command("status"))
record("logs", lambda: command("logs"))
record("doctor", lambda: command("doctor", "stub/ok", "--engine", "stubs.engine"))
record("stop", lambda: command("stop"))
with open({report!r}, "w", encoding="utf-8", errors="replace") as file:
    json.dump(outcomes, file)
"""

_PATIENCE_S: Final = 4 * waiting.DEADLINE_S
Values = dict[str, str | bytes | None]


@dataclass(frozen=True)
class Environment:
    """An environment to be in.

    Attributes:
        values: Variables; None for one that is not set. ``{}`` is a folder of the test's own.
        before: Code that runs first in the process.
        works: Whether everything must work; else all must work or be refused.
        prepare: Called in the process before its program is run.
    """

    values: Values = field(default_factory=dict)
    before: str = ""
    works: bool = False
    prepare: Callable[[], Any] | None = None

    @property
    def is_of_interpreter(self) -> bool:
        """Whether an interpreter or a library may do otherwise when it starts in it."""
        is_default = not (self.values or self.before)
        return is_default or bool(self.prepare) or not self.values.keys() <= _READ_BY_EMBERD


_READ_BY_EMBERD: Final = {"HOME", "PATH", "XDG_STATE_HOME", *env.VARIABLES}
_NO_USER = "import pwd\ndef unknown(*_): raise KeyError\npwd.getpwuid = pwd.getpwnam = unknown\n"


def _limited(which: int, limit: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(which, (limit, limit))


ENVIRONMENTS: Final = {
    "as usual": Environment(works=True),
    "no home": Environment({"EMBERD_HOME": None, "HOME": None}, _NO_USER),
    "EMBERD_HOME without a home": Environment({"HOME": None}, _NO_USER, works=True),
    "home that is missing": Environment({"EMBERD_HOME": None, "HOME": "{}/gone"}, works=True),
    "home that may not be written": Environment({"EMBERD_HOME": None, "HOME": "/proc"}),
    "home that is a file": Environment({"EMBERD_HOME": None, "HOME": sys.executable}),
    "relative home": Environment({"EMBERD_HOME": None, "HOME": "home"}),
    "relative state folder": Environment({"EMBERD_HOME": None, "XDG_STATE_HOME": "state"}),
    "empty EMBERD_HOME": Environment({"EMBERD_HOME": "", "HOME": "{}/h"}, works=True),
    "EMBERD_HOME of nobody": Environment({"EMBERD_HOME": "~no-such-user/emberd"}),
    "relative EMBERD_HOME": Environment({"EMBERD_HOME": "in-the-working-folder"}, works=True),
    "relative EMBERD_HOME, no folder": Environment(
        {"EMBERD_HOME": "home"}, "os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')"
    ),
    "EMBERD_HOME that is a file": Environment({"EMBERD_HOME": sys.executable}),
    "EMBERD_HOME below a file": Environment({"EMBERD_HOME": f"{sys.executable}/home"}),
    "EMBERD_HOME without an encoding": Environment({"EMBERD_HOME": b"{}/\xff\xfe"}, works=True),
    "EMBERD_HOME with a long name": Environment({"EMBERD_HOME": "{}/" + "x" * 300}),
    "EMBERD_HOME with a long path": Environment({"EMBERD_HOME": "{}" + "/x" * 2050}),
    "EMBERD_HOME of 200 characters": Environment(
        {"EMBERD_HOME": "{}" + "/long-name" * 20}, works=True
    ),
    "EMBERD_HOME with odd names": Environment(
        {"EMBERD_HOME": "{}/a:b 'c' \"d\" $e\nf\\"}, works=True
    ),
    "no temporary folder": Environment({"TMPDIR": "/proc"}),
    "long temporary folder": Environment({"TMPDIR": "{}" + "/t" * 80}),
    "no search path": Environment({"PATH": None}, works=True),
    "no variables": Environment(dict.fromkeys((*os.environ,)), works=True),
    "C locale": Environment(
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "EMBERD_HOME": "{}/\u00e9"}
    ),
    "ASCII streams": Environment(
        {"PYTHONIOENCODING": "ascii:strict", "EMBERD_HOME": "{}/\u00e9"}, works=True
    ),
    "warnings are errors": Environment({"PYTHONWARNINGS": "error"}, works=True),
    "optimised": Environment({"PYTHONOPTIMIZE": "2"}, works=True),
    "proxy that is no URL": Environment(
        {"HTTP_PROXY": "http://[::1", "ALL_PROXY": "socks5://x", "NO_PROXY": ""}
    ),
    "no certificates": Environment({"SSL_CERT_FILE": "/no/such/file", "SSL_CERT_DIR": "/no"}),
    "few descriptors": Environment(prepare=_limited(resource.RLIMIT_NOFILE, 12)),
    "closed streams": Environment(prepare=lambda: list(map(os.close, (0, 1, 2)))),
    "ignored signals": Environment(
        before="import signal\n"
        "for each in signal.valid_signals() - {9, 19}: signal.signal(each, signal.SIG_IGN)\n",
        works=True,
    ),
    "blocked signals": Environment(
        before="import signal\nsignal.pthread_sigmask(0, signal.valid_signals())", works=True
    ),
    **{
        f"{name} is garbage": Environment({name: "\U0001f525 \x01 --x '"})
        for name in env.VARIABLES
        if name not in ("EMBERD_HOME", "EMBERD_DEBUG")
    },
}


def _by_interpreter(program: str, given: dict[str, str], prepare: Callable[[], Any] | None) -> str:
    streams: Any = {} if prepare else {"stdin": subprocess.DEVNULL, "capture_output": True}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=given,
        preexec_fn=prepare,
        timeout=_PATIENCE_S,
        check=False,
        **streams,
    )
    return str(done.stderr)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_entry_points_work_or_raise_an_error_of_ours(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    environment = ENVIRONMENTS[name]
    report = tmp_path / "report.json"
    path = os.pathsep.join(entry for entry in sys.path if entry)
    values: Values = {
        **os.environ,
        "EMBERD_HOME": "{}/home",
        **environment.values,
        "PYTHONPATH": path,
    }
    given = {
        key: os.fsdecode(os.fsencode(value).replace(b"{}", os.fsencode(tmp_path)))
        for key, value in values.items()
        if value is not None
    }
    program = CALLS.format(before=environment.before, report=str(report))
    try:
        if environment.is_of_interpreter:
            done = _by_interpreter(program, given, environment.prepare)
        else:
            done = run_program(
                *("-c", program), environment=given, timeout_s=_PATIENCE_S, with_frameworks=False
            ).err
    finally:
        left = leftovers.end_all([str(tmp_path)])
    assert report.exists(), done
    outcomes = json.loads(report.read_text())
    escaped = {call: said for call, (kind, said) in outcomes.items() if kind == "escaped"}
    assert not escaped, "\n".join(f"{call}: {said}" for call, said in escaped.items())
    if environment.works:
        refused = {call: said for call, (kind, said) in outcomes.items() if kind == "refused"}
        assert not refused, refused
    assert not left
