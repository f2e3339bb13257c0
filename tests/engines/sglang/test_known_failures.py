"""Diagnoses of SGLang servers that failed, from recorded logs."""

from __future__ import annotations

import re
import signal
import time
from functools import cache

import pytest

import sglang_logs
import source_tree
from emberd.engines.sglang import log_reader
from emberd.engines.sglang.log_reader import diagnose, has_failed, known_failures
from emberd.system import log_rules
from emberd.system.log_rules import Diagnosis

FAILURES = known_failures()
DOCS = source_tree.ROOT / "docs/failures.md"
KEY = "made-up-key"
READY = "ready"
KEPT_CHARS = 256 * 1024
EXCEPTION = (
    "[2026-11-22 12:00:00] Scheduler hit an exception: Traceback (most recent call last):\n"
    '  File "scheduler.py", line 1, in run_scheduler_process\n'
    "    scheduler = Scheduler(server_args, port_args)\n"
    "{}\n\n"
    "[2026-11-22 12:00:00] Received sigquit from a child process.\n"
)
OUT_OF_MEMORY = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 1 has a total "
    "capacity of 22.05 GiB of which 1.50 GiB is free."
)

TOLD = [name for name in sglang_logs.names() if name != READY]


@cache
def told(name: str) -> Diagnosis:
    log = sglang_logs.read(name)
    return diagnose(log.exit_code, log.text)


def first_that_fits(name: str) -> str | None:
    words = log_reader.last_words(sglang_logs.read(name).text)
    return next((failure.name for failure in FAILURES if failure.pattern.search(words)), None)


# ---------------------------------------------------------------- the table and its logs


def test_recorded_failure_has_its_cause_and_advice() -> None:
    for name in TOLD:
        fields = sglang_logs.read(name).fields
        diagnosis = told(name)
        assert diagnosis.cause == fields["told"], name
        assert fields["advice"] in diagnosis.advice, name


def test_each_rule_has_a_log_and_is_its_first_match() -> None:
    for failure in FAILURES:
        assert first_that_fits(sglang_logs.name_of(failure.name)) == failure.name


def test_each_rule_has_a_recorded_run_or_a_source() -> None:
    for failure in FAILURES:
        fields = sglang_logs.read(sglang_logs.name_of(failure.name)).fields
        assert ("run" in fields) == (failure.source is None), failure.name
        assert fields.get("source") == failure.source, failure.name


def test_rule_names_are_unique_and_every_log_is_used() -> None:
    known = [sglang_logs.name_of(failure.name) for failure in FAILURES]
    assert len(set(known)) == len(known)
    assert set(sglang_logs.names()) == {*known, *TOLD, READY}


def test_every_value_of_a_diagnosis_is_filled_in() -> None:
    for name in TOLD:
        diagnosis = told(name)
        assert not re.search(r"[{}]|\bNone\b", diagnosis.cause + diagnosis.advice), name


def test_diagnosis_contains_no_key() -> None:
    for name in TOLD:
        diagnosis = told(name)
        assert KEY not in diagnosis.cause + diagnosis.advice, name


def test_the_logs_hold_the_line_with_the_key() -> None:
    assert sum(KEY in sglang_logs.read(name).text for name in TOLD) > len(TOLD) / 2


def test_only_a_lost_http_port_allows_another_port() -> None:
    assert [name for name in TOLD if told(name).port_taken] == ["port-taken"]


def test_only_a_kill_from_outside_allows_another_start() -> None:
    assert {name for name in TOLD if told(name).killed} == {
        "killed-from-outside",
        "killed-while-serving",
        "killed-parent",
        "host-memory-killed",
    }


def test_docs_contain_each_rule() -> None:
    lines = DOCS.read_text(encoding="utf-8").splitlines()
    assert [failure.name for failure in FAILURES if sglang_logs.row(failure) not in lines] == []


# ---------------------------------------------------------------- no reason in the log


@pytest.mark.parametrize(
    ("number", "cause"),
    [
        (signal.SIGKILL, "SGLang was killed, most likely because memory ran out"),
        (signal.SIGTERM, "SGLang was terminated from outside (SIGTERM)"),
        (signal.SIGILL, "SGLang used an instruction that this processor lacks (SIGILL)"),
        (
            signal.SIGBUS,
            (
                "SGLang was killed by SIGBUS: a memory-mapped file could not grow, most likely "
                "because a disk or /dev/shm is full"
            ),
        ),
        (signal.SIGSEGV, "SGLang crashed (SIGSEGV)"),
    ],
)
@pytest.mark.parametrize("log", ["", sglang_logs.read(READY).text], ids=["no-log", "ready"])
def test_without_a_reason_in_the_log_the_signal_is_reported(
    number: signal.Signals, cause: str, log: str
) -> None:
    diagnosis = diagnose(-number, log)
    assert diagnosis.cause == cause
    assert diagnosis.advice
    assert diagnosis.killed == (number in (signal.SIGKILL, signal.SIGTERM))


@pytest.mark.parametrize("code", [0, 1, 3, 137, -64])
def test_other_exits_are_reported_with_their_code(code: int) -> None:
    diagnosis = diagnose(code, "")
    assert diagnosis.cause == f"SGLang ended with code {code}; its last line: it wrote nothing"
    assert not diagnosis.killed


def test_silent_start_is_reported_with_its_step() -> None:
    log = sglang_logs.read("no-gpu").text.partition("Scheduler hit")[0]
    assert diagnose(None, log).cause == (
        "SGLang wrote nothing for too long while preparing the device, and was ended"
    )


def test_silent_download_gets_advice_on_the_network() -> None:
    diagnosis = diagnose(None, "Using model weights format ['*.safetensors']\n")
    assert "while downloading the weights" in diagnosis.cause
    assert "network" in diagnosis.advice


def test_silent_start_is_reported_by_the_reason_in_the_log() -> None:
    assert diagnose(None, EXCEPTION.format(OUT_OF_MEMORY)).cause == (
        "GPU 1 ran out of memory: 2.00 GiB were requested and 1.50 GiB of 22.05 GiB were free"
    )


# ---------------------------------------------------------------- which words count


def test_unknown_exception_is_quoted() -> None:
    diagnosis = diagnose(-9, EXCEPTION.format("sglang.srt.odd.OddError: the bucket is 3 litres"))
    assert diagnosis.cause == "SGLang failed: sglang.srt.odd.OddError: the bucket is 3 litres"
    assert not diagnosis.killed


def test_quotes_are_short_and_contain_no_key() -> None:
    words = f"ValueError: api_key='{KEY}' is odd" + " and odd" * 1000
    cause = diagnose(1, EXCEPTION.format(words)).cause
    assert "api_key=*** is odd" in cause
    assert KEY not in cause
    assert len(cause) < 400


@pytest.mark.parametrize(
    "text",
    [
        "api_key='{}'",
        "'api_key': '{}'",
        "admin_api_key={},",
        'api-key: "{}"',
        "--api-key {} --port 1",
        "--apikey {} --port 1",
        "--admin-api-key={}",
        "Authorization: Bearer {}",
        "HF_TOKEN={}",
        "ssl_keyfile_password='{}'",
        "http://user:{}@proxy:3128/",
    ],
)
def test_keys_are_hidden_however_they_are_written(text: str) -> None:
    assert KEY not in log_rules.excerpt(text.format(KEY))


@pytest.mark.parametrize("token", ["hf_abcdefghijkl", "sk-abcdefghijkl"])
def test_a_token_is_hidden_wherever_it_stands(token: str) -> None:
    assert log_rules.excerpt(f"got {token}!") == "got ***!"


def test_log_of_requests_is_not_the_reason_after_serving() -> None:
    request = f"Traceback (most recent call last):\n{OUT_OF_MEMORY}\nINFO: answered 500\n"
    diagnosis = diagnose(-signal.SIGKILL, sglang_logs.read(READY).text + request)
    assert diagnosis.killed


def test_exception_of_the_scheduler_is_the_reason_after_serving() -> None:
    log = sglang_logs.read(READY).text + EXCEPTION.format(OUT_OF_MEMORY)
    assert diagnose(-signal.SIGKILL, log).cause.startswith("GPU 1 ran out of memory")


def test_first_exception_of_several_schedulers_is_the_reason() -> None:
    second = "RuntimeError: NCCL error in: x.cpp:7, remote process exited"
    log = EXCEPTION.format(OUT_OF_MEMORY) + EXCEPTION.format(second)
    assert diagnose(-9, log).cause.startswith("GPU 1 ran out of memory")
    assert "NCCL" in diagnose(-9, EXCEPTION.format(second)).cause


@pytest.mark.parametrize(
    "line",
    [
        'INFO:     127.0.0.1:5 - "GET /No space left on device HTTP/1.1" 404 Not Found',
        "x.py:9: UserWarning: CUDA out of memory may come",
        "Ignore import error when loading y: ImportError: liby.so: cannot open shared object file",
        "    raise RuntimeError('SGLang only supports sm75 and above.')",
        "server_args={'model_path': 'MemoryError', 'api_key': 'No space left on device'}",
        "                    [--old-gpu {SGLang only supports sm75 and above}]",
    ],
)
def test_line_that_only_mentions_a_failure_is_not_the_reason(line: str) -> None:
    assert diagnose(-signal.SIGKILL, f"starting\n{line}\n").killed


def test_the_model_is_named_from_the_settings_that_the_log_holds() -> None:
    log = (
        "server_args={'model_path': '/models/own', 'port': 1}\n"
        "RuntimeError: The size of tensor a (96) must match the size of tensor b (64)"
    )
    assert diagnose(1, log).cause.startswith("the weights of /models/own do not match")


def test_lost_port_is_a_failure_although_the_process_still_runs() -> None:
    """For two minutes SGLang asks the process that has the port whether it is warm."""
    assert has_failed(sglang_logs.read("port-taken").text)
    assert not has_failed(sglang_logs.read(READY).text)
    assert not has_failed("")


def test_a_long_log_is_read_in_a_moment() -> None:
    log = (sglang_logs.read("hub-unreachable").text * 100)[-KEPT_CHARS:]
    began = time.thread_time()
    diagnose(1, log)
    assert time.thread_time() - began < 2


# ---------------------------------------------------------------- killed while it started

OUTLIVED = (
    "[2026-11-22 12:00:00] An optional module is not there\n"
    "Traceback (most recent call last):\n"
    "ModuleNotFoundError: No module named 'optional'\n"
    "OSError: We couldn't connect to 'https://hub' to load the files\n"
)
WENT_ON = "[2026-11-22 12:00:01] Load weight begin. avail mem=21.60 GB\n"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_exception_before_the_start_continued_is_not_the_reason(number: signal.Signals) -> None:
    diagnosis = diagnose(-number, OUTLIVED + WENT_ON)
    assert "from outside" in diagnosis.cause or "was killed" in diagnosis.cause
    assert diagnosis.killed


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_last_exception_of_a_killed_start_is_the_reason(
    number: signal.Signals,
) -> None:
    ending = "[2026-11-22 12:00:02] kill_process_tree called: parent_pid=1, pid=1\n"
    diagnosis = diagnose(-number, WENT_ON + OUTLIVED.partition("OSError")[0] + ending)
    assert "No module named 'optional'" in diagnosis.cause
    assert not diagnosis.killed


def test_start_that_exited_is_reported_by_its_exception() -> None:
    assert "No module named" in diagnose(1, OUTLIVED.partition("OSError")[0] + WENT_ON).cause


# ---------------------------------------------------------------- what is said of options


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--apikey SECRETKEY123", "the option --apikey"),
        ("--a=SECRETKEY123 --b SECRETKEY123", "the option --a --b"),
        ("SECRETKEY123", "the option given in the arguments"),
    ],
)
def test_only_names_of_unknown_options_are_quoted(words: str, told: str) -> None:
    cause = diagnose(2, f"sglang serve: error: unrecognized arguments: {words}\n").cause
    assert cause == f"the installed SGLang does not know {told}"


def test_value_of_an_ambiguous_option_is_not_quoted() -> None:
    log = "sglang serve: error: ambiguous option: --ap=SECRETKEY123 could match --api-key, --api\n"
    assert diagnose(2, log).cause == "SGLang refuses an option: ambiguous option: --ap"


def test_no_advice_makes_the_kv_cache_smaller_than_the_plan_for_it() -> None:
    """One that is smaller than the context makes long texts wait for ever."""
    for failure in FAILURES:
        assert not re.search(
            r"--(max-total-tokens|mem-fraction-static|max-prefill-tokens|quantization)"
            r"|quantization=",
            failure.advice,
        ), failure.name


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        ("/bin/sh: 1: /usr/local/cuda/bin/nvcc: not found", "nvcc was not found"),
        ("sh: line 1: nvcc: command not found", "nvcc was not found"),
        (
            "nvcc fatal : Failed to preprocess host compiler properties.",
            "no C++ compiler was found",
        ),
        ("gcc: fatal error: cannot execute 'cc1plus': No such file", "no C++ compiler was found"),
        ("ptxas: out of luck", "rope could not be compiled"),
    ],
)
def test_missing_compiler_is_reported(words: str, cause: str) -> None:
    error = f"RuntimeError: Failed to build JIT module rope in /tmp\nstdout:\n{words}\n"
    assert diagnose(-9, EXCEPTION.format(error)).cause.endswith(cause)
