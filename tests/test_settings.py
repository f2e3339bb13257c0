from __future__ import annotations

import copy
import inspect
import pickle
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from emberd import Embedder, Manager
from emberd.catalog import Model
from emberd.endpoint import Endpoint, root_url
from emberd.env import Places
from emberd.errors import InstructionError, SettingError
from emberd.settings import UNSET, ServerSpec, Settings

SPEC = ServerSpec(model="some/model")


# ---- the server that is wanted


def test_identity_is_what_makes_vectors_what_they_are() -> None:
    same = ServerSpec(model="some/model", engine="demo", device="cpu", context_tokens=9)
    assert (same.identity, same.key) == (SPEC.identity, SPEC.key)


@pytest.mark.parametrize("field", ["model", "revision", "quantization"])
def test_another_identity_has_another_key(field: str) -> None:
    other = ServerSpec(**{"model": "some/model", field: "other"})  # type: ignore[arg-type]
    assert other.key != SPEC.key
    assert len(other.key) == 16


def test_a_key_is_the_same_in_every_process() -> None:
    assert ServerSpec(model="emberd/demo").key == "a6acd67aadfae51c"


@pytest.mark.parametrize(
    ("wish", "fits"),
    [
        ({}, True),
        ({"engine": "demo"}, True),
        ({"engine": "sglang"}, False),
        ({"device": "cpu"}, True),
        ({"device": "cuda"}, False),
        ({"context_tokens": 512}, True),
        ({"context_tokens": 513}, False),
        ({"deterministic": True}, False),
    ],
)
def test_a_running_server_must_meet_the_constraints(wish: dict[str, Any], fits: bool) -> None:
    assert ServerSpec(**wish).accepts("demo", "cpu", 512, deterministic=False) is fits


def test_a_server_that_does_not_state_its_context_is_accepted() -> None:
    assert ServerSpec(context_tokens=9).accepts("demo", "cpu", None, deterministic=False)


def test_determinism_is_a_constraint_and_not_part_of_the_identity() -> None:
    wanted = ServerSpec(deterministic=True)
    assert wanted.accepts("demo", "cpu", None, deterministic=True)
    assert ServerSpec().accepts("demo", "cpu", None, deterministic=True)
    assert wanted.key == ServerSpec().key


def test_no_key_is_ever_printed() -> None:
    assert "secret" not in repr(Settings.resolve(api_key="secret"))
    assert "secret" not in repr(Endpoint("http://h", "m", 1, api_key="secret"))
    assert Endpoint("http://h:1", "m", 1).base_url == "http://h:1/v1"


# ---- where settings come from


def test_defaults_stand_where_nothing_was_said() -> None:
    assert Settings.resolve() == Settings()


def test_none_and_unset_are_not_given_except_for_never() -> None:
    assert Settings.resolve(batch_size=None, idle_timeout=UNSET) == Settings()
    assert Settings.resolve(idle_timeout=None).idle_timeout is None


@pytest.mark.parametrize(
    ("variable", "text", "field", "value"),
    [
        ("MODEL", "emberd/demo", "model", "emberd/demo"),
        ("DIMENSIONS", "64", "dimensions", 64),
        ("QUERY_INSTRUCTION", "", "query_instruction", ""),
        ("DOCUMENT_INSTRUCTION", "facts", "document_instruction", "facts"),
        ("BASE_URL", "http://h:1/v1/", "base_url", "http://h:1"),
        ("API_KEY", "key", "api_key", "key"),
        ("REVISION", "abc", "revision", "abc"),
        ("QUANTIZATION", "fp8", "quantization", "fp8"),
        ("ENGINE", "demo", "engine", "demo"),
        ("DEVICE", "cpu", "device", "cpu"),
        ("BATCH_SIZE", "7", "batch_size", 7),
        ("MAX_CONCURRENCY", "3", "max_concurrency", 3),
        ("TIMEOUT", "1.5", "timeout", 1.5),
        ("TIMEOUT", "90s", "timeout", 90.0),
        ("START_TIMEOUT", "60", "start_timeout", 60.0),
        ("START_TIMEOUT", "1h30m", "start_timeout", 5400.0),
        ("IDLE_TIMEOUT", "never", "idle_timeout", None),
        ("IDLE_TIMEOUT", "2d", "idle_timeout", 172_800.0),
        ("IDLE_TIMEOUT", "9", "idle_timeout", 9.0),
        ("MODEL", "", "model", "Qwen/Qwen3-Embedding-4B"),
    ],
)
def test_the_environment_is_read_and_an_argument_wins(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str, field: str, value: Any
) -> None:
    monkeypatch.setenv(f"EMBERD_{variable}", text)
    assert getattr(Settings.resolve(), field) == value
    given = {"model": "a/b", "base_url": "http://other", "dimensions": 32}.get(field, 5)
    if isinstance(getattr(Settings(), field), float | int) or field in ("model", "base_url"):
        assert getattr(Settings.resolve(**{field: given}), field) == given


@pytest.mark.parametrize(
    ("variable", "wanted"),
    [
        ("DIMENSIONS", "a whole number"),
        ("BATCH_SIZE", "a whole number"),
        ("TIMEOUT", "a number of seconds, .* 90s, 5m, 1h30m or 2d"),
        ("START_TIMEOUT", "a number of seconds, .* 90s, 5m, 1h30m or 2d"),
        ("IDLE_TIMEOUT", "a number of seconds, .* 90s, 5m, 1h30m or 2d, or never"),
        ("TRUNCATE", "1 or 0"),
    ],
)
def test_a_variable_that_cannot_be_read_is_named(
    monkeypatch: pytest.MonkeyPatch, variable: str, wanted: str
) -> None:
    monkeypatch.setenv(f"EMBERD_{variable}", "many")
    message = rf"EMBERD_{variable}='many' cannot be read: give {wanted}\."
    with pytest.raises(SettingError, match=message):
        Settings.resolve()


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("model", " "),
        ("dimensions", "7"),
        ("query_instruction", "Query: "),
        ("document_instruction", "Query: "),
        ("base_url", "localhost"),
        ("base_url", "http://user:password@host"),
        ("api_key", "a b"),
        ("revision", " "),
        ("quantization", "int4"),
        ("engine", " "),
        ("device", " "),
        ("context_tokens", "0"),
        ("batch_size", "0"),
        ("max_concurrency", "-1"),
        ("timeout", "0"),
        ("start_timeout", "0"),
        ("idle_timeout", "0"),
        ("cache", "nonsense"),
    ],
)
def test_error_names_where_a_value_was_set(
    monkeypatch: pytest.MonkeyPatch, field: str, text: str
) -> None:
    """The variable is named if it was set by one, else the argument, which takes precedence."""
    invalid: dict[str, Any] = {
        "dimensions": 7,
        "context_tokens": 0,
        "batch_size": 0,
        "max_concurrency": 0,
    }
    variable = f"EMBERD_{field.upper()}"
    monkeypatch.setenv(variable, text)
    with pytest.raises(SettingError, match=f"^{variable}(=| contains)") as raised:
        Embedder()
    assert not re.search(rf"\b{field}\b=", str(raised.value).partition(". ")[0])
    with pytest.raises(SettingError, match=f"^{field}(=| contains)"):
        Embedder(**{field: invalid.get(field, text)})


def test_key_of_the_environment_that_is_invalid_is_named_when_unpickled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pickled = pickle.dumps(Embedder())
    monkeypatch.setenv("EMBERD_API_KEY", "a b")
    with pytest.raises(SettingError, match=r"^EMBERD_API_KEY contains"):
        pickle.loads(pickled)


def test_variable_that_an_argument_overrides_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBERD_BATCH_SIZE", "many")
    assert Settings.resolve(batch_size=3).batch_size == 3


@pytest.mark.parametrize("home", ["~no-such-user/x", "a\0b", 0, 5])
def test_home_that_is_no_path_is_not_reported_as_that_of_the_environment(home: Any) -> None:
    with pytest.raises(SettingError, match=r"^home="):
        Manager(home)


def test_home_of_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBERD_HOME", "~no-such-user/x")
    with pytest.raises(SettingError, match=r"^EMBERD_HOME="):
        Manager()


@pytest.mark.parametrize(("word", "meant"), [("1", True), ("Yes", True), ("0", False)])
def test_a_switch_is_read_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, word: str, meant: bool
) -> None:
    monkeypatch.setenv("EMBERD_TRUNCATE", word)
    assert Settings.resolve().truncate is meant


@pytest.mark.parametrize("name", ["model", "revision", "engine", "device"])
@pytest.mark.parametrize("value", ["", " ", 5])
def test_a_name_must_be_a_text_that_is_not_blank(name: str, value: Any) -> None:
    with pytest.raises(SettingError, match=f"{name}=.* must be a string that is not blank"):
        Settings.resolve(**{name: value})


@pytest.mark.parametrize("value", ["int4", "FP8", "", 8, True])
def test_a_quantisation_that_is_not_supported_is_refused_with_those_that_are(value: Any) -> None:
    with pytest.raises(SettingError, match="quantization=.* must be 'fp8'"):
        Settings.resolve(quantization=value)


@pytest.mark.parametrize("name", ["truncate", "server_dimensions", "show_progress"])
def test_a_switch_must_be_true_or_false(name: str) -> None:
    with pytest.raises(SettingError, match=f"{name}='yes' must be True or False"):
        Settings.resolve(**{name: "yes"})


def test_a_setting_that_does_not_exist_is_named_with_those_that_do() -> None:
    with pytest.raises(SettingError, match="Unknown setting 'batchsize'. Known are: api_key, base"):
        Settings.resolve(batchsize=3)


@pytest.mark.parametrize("name", ["batch_size", "max_concurrency"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "8", True, float("nan")])
def test_counts_are_whole_and_at_least_one(name: str, value: Any) -> None:
    with pytest.raises(SettingError, match=f"{name}=.* must be an integer of at least 1"):
        Settings.resolve(**{name: value})


@pytest.mark.parametrize("name", ["timeout", "start_timeout", "idle_timeout"])
@pytest.mark.parametrize(
    "value", [0, -1, "0", "-1", "soon", "", b"8", [8], True, float("nan"), float("inf"), 1e300]
)
def test_a_duration_is_finite_and_greater_than_zero(name: str, value: Any) -> None:
    with pytest.raises(SettingError, match=f"{name}=.* must be a duration greater .* 1h30m"):
        Settings.resolve(**{name: value})


@pytest.mark.parametrize("name", ["timeout", "start_timeout", "idle_timeout"])
def test_a_duration_may_be_a_text(name: str) -> None:
    for settings in (Settings.resolve(**{name: "5m"}), Settings().changed(**{name: "5m"})):
        assert getattr(settings, name) == 300


def test_only_the_idle_timeout_may_be_never() -> None:
    assert Settings.resolve(idle_timeout="never").idle_timeout is None
    for name in ("timeout", "start_timeout"):
        with pytest.raises(SettingError, match=f"{name}='never' must be a duration"):
            Settings.resolve(**{name: "never"})


@pytest.mark.parametrize("dimensions", [31, 2561, 0, "64", 64.0, True])
def test_dimensions_must_suit_the_model(dimensions: Any) -> None:
    with pytest.raises(SettingError, match="dimensions="):
        Settings.resolve(dimensions=dimensions)


def test_an_instruction_that_would_be_misread_fails_at_construction() -> None:
    with pytest.raises(InstructionError):
        Settings.resolve(query_instruction="Instruct: mine\nQuery:")


def test_the_spec_is_the_part_that_says_which_server() -> None:
    given: dict[str, Any] = {"revision": "r", "engine": "sglang", "device": "cuda"}
    given["quantization"] = "fp8"
    settings = Settings.resolve(model="a/b", timeout=3, **given)
    assert settings.spec == ServerSpec(model="a/b", **given)


# ---- addresses and places


@pytest.mark.parametrize(
    "url",
    ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/", " http://h:1/v1 "],
)
def test_an_address_may_be_given_with_or_without_v1(url: str) -> None:
    assert root_url(url) == "http://h:1"


@pytest.mark.parametrize(
    "url",
    [
        "user:s3cret@host:30000",
        "http://user:s3/cret@host",
        "http://host/?key=s3cret",
        "http://host#s3cret",
    ],
)
def test_parts_of_an_address_that_may_be_secret_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(SettingError, match="base_url contains a") as caught:
        Settings.resolve(base_url=url)
    assert "s3" not in str(caught.value)


@pytest.mark.parametrize("url", ["h:1", "", "ftp://h", "http://", "/v1"])
def test_what_is_no_address_is_refused_with_an_example(url: str) -> None:
    with pytest.raises(SettingError, match="Write it like http://127.0.0.1:30000/v1"):
        root_url(url)


def test_places_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EMBERD_HOME", str(tmp_path))
    monkeypatch.setenv("EMBERD_DISCOVER", "http://a:1/v1, http://b:2 http://c:3")
    places = Places.resolve()
    assert places.home == str(tmp_path)
    assert places.engines == str(tmp_path / "engines")
    assert places.discover == ("http://a:1", "http://b:2", "http://c:3")
    monkeypatch.setenv("EMBERD_ENGINES", "/elsewhere")
    assert Places.resolve(tmp_path / "other").engines == "/elsewhere"
    assert Places.resolve(tmp_path / "other").home == str(tmp_path / "other")


def test_without_a_variable_the_home_is_the_platforms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EMBERD_HOME")
    home = Places.resolve().home
    assert Path(home).is_absolute()
    assert Path(home).name == "emberd"


def test_the_embedder_takes_every_setting_and_no_other() -> None:
    taken = set(inspect.signature(Embedder).parameters) - {"manager", "client", "async_client"}
    assert taken == {field.name for field in fields(Settings)}


def test_credentials_in_a_url_are_refused_without_being_repeated() -> None:
    with pytest.raises(SettingError, match="user name or password") as caught:
        Settings.resolve(base_url="http://me:hunter2@host:1/v1")
    assert "hunter2" not in str(caught.value)


# ---- keys


def test_a_key_is_stripped() -> None:
    assert Settings.resolve(api_key=" sk-key\n").api_key == "sk-key"
    assert Settings.resolve(api_key=" ").api_key is None


@pytest.mark.parametrize("key", ["sk-s3cret\nx", "sk s3cret", "sk-s3cr\xe9t", "s3\0", 7, b"s3"])
def test_a_key_that_no_header_carries_is_refused_and_not_repeated(
    key: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingError, match="api_key") as caught:
        Settings.resolve(api_key=key)
    assert "s3" not in str(caught.value)


def test_what_holds_a_secret_is_unwrapped() -> None:
    class Secret:
        def get_secret_value(self) -> str:
            return "sk-key"

    assert Settings.resolve(api_key=Secret()).api_key == "sk-key"


def test_a_model_may_be_a_path() -> None:
    bare = {"query_instruction": "", "document_instruction": ""}
    assert Settings.resolve(model=Path("/models/x"), **bare).model == "/models/x"


def test_a_card_is_kept_by_other_settings() -> None:
    """Threads share an object, and files that arrive later do not change what it was made with."""
    settings = Settings.resolve()
    known = Model(settings.model, dimensions=7)
    kept = settings.with_card(known)
    assert kept.known is known
    assert settings.known.dimensions == 2560
    assert kept == settings


def test_a_pickle_of_settings_holds_all_but_the_key_and_a_copy_holds_all() -> None:
    settings = Settings.resolve(api_key="s3cret", dimensions=64)
    packed = pickle.dumps(settings)
    assert b"s3cret" not in packed
    assert pickle.loads(packed) == replace(settings, api_key=None)
    assert copy.copy(settings) == copy.deepcopy(settings) == settings
