from __future__ import annotations

import pytest

from emberd.cache import open_cache
from emberd.cache.urls import DEFAULT_MAX_BYTES, parse
from emberd.errors import SettingError


def test_bare_sqlite_is_a_file_in_the_home(managed_home: object) -> None:
    place = parse("sqlite")
    assert (place.scheme, place.path, place.dtype) == ("sqlite", "", "float32")
    assert place.max_bytes == DEFAULT_MAX_BYTES
    assert open_cache("sqlite").path == f"{managed_home}/cache/vectors.db"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///var/x.db", "/var/x.db"),
        ("sqlite:////var/x.db", "//var/x.db"),
        ("sqlite:///var/a%20b%3F.db?dtype=float16", "/var/a b?.db"),
        ("  sqlite  ", ""),
        ("sqlite://", ""),
    ],
)
def test_the_path_of_a_file(url: str, path: str) -> None:
    assert parse(url).path == path


@pytest.mark.parametrize(
    ("url", "servers", "database"),
    [
        ("redis://localhost", (("localhost", 6379),), 0),
        ("redis://h:1/7", (("h", 1),), 7),
        ("rediss://[::1]:6380/", (("::1", 6380),), 0),
        ("memcached://a,b:2,[::1]", (("a", 11211), ("b", 2), ("::1", 11211)), 0),
    ],
)
def test_servers(url: str, servers: tuple[tuple[str, int], ...], database: int) -> None:
    place = parse(url)
    assert (place.servers, place.database) == (servers, database)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64MB", 64 * 10**6),
        ("20GB", 20 * 10**9),
        ("1.5 tb", 15 * 10**11),
        ("1GiB", 2**30),
        ("70m", 7 * 10**7),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse(f"sqlite?max_bytes={text}").max_bytes == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5", 5),
        ("90s", 90),
        ("12h", 43200),
        ("30D", 2592000),
        ("1h30m", 5400),
        ("1.5h", 5400),
        ("never", None),
    ],
)
def test_times_to_live(text: str, seconds: int | None) -> None:
    assert parse(f"redis://h?ttl={text}").ttl_s == seconds


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "must be a URL"),
        (None, "must be a URL"),
        (True, "must be a URL"),
        ("mysql://h", "is not a known kind of cache"),
        ("vectors.db", "is not a known kind of cache"),
        ("/var/x.db", "is not a known kind of cache"),
        ("SQLITE3:///x", "is not a known kind of cache"),
        ("sqlite://relative.db", "three slashes"),
        ("sqlite:relative.db", "three slashes"),
        ("sqlite:///var/", "three slashes"),
        ("sqlite:///x.db#1", "%23"),
        ("redis://", "host:port"),
        ("redis://h:x", "host:port"),
        ("redis://h:0", "host:port"),
        ("redis://h:70000", "host:port"),
        ("redis://[::1", "not a valid URL"),
        ("redis://a,b", "one for Redis"),
        ("redis://h/name", "not a database number"),
        ("memcached://h/0", "Memcached has no databases"),
        ("memcached://a,,b", "host:port"),
        ("sqlite?ttl=5", "dtype and max_bytes"),
        ("redis://h?max_bytes=5GB", "dtype and ttl"),
        ("redis://h?db=1", "dtype and ttl"),
        ("sqlite:////tmp/a%00b/x.db", "absolute path"),
        ("sqlite?max_bytes=5", "at least 64MB"),
        ("sqlite?max_bytes=" + "9" * 400, "at least 64MB"),
        ("sqlite?max_bytes=much", "at least 64MB"),
        ("sqlite?max_bytes=-1GB", "at least 64MB"),
        ("sqlite?max_bytes=", "at least 64MB"),
        ("sqlite?dtype=int8", "float32 or float16"),
        ("sqlite?dtype=float16&dtype=float16", "twice"),
        ("redis://h?ttl=0", "1h30m"),
        ("redis://h?ttl=soon", "1h30m"),
        ("redis://h?ttl=0.5", "at least 1 s"),
        ("redis://h?ttl=1.5", "whole number of seconds"),
        ("redis://h?ttl=1e300", "1h30m"),
    ],
)
def test_invalid_url_is_refused_with_what_is_valid(url: str, says: str) -> None:
    with pytest.raises(SettingError, match=says):
        parse(url)


@pytest.mark.parametrize(
    "url", ["redis://me:geheim@h", "redis://:geheim@h/0", "memcached://geheim@h"]
)
def test_a_password_in_the_url_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(SettingError, match="EMBERD_CACHE_PASSWORD") as refused:
        parse(url)
    assert "geheim" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://h/0?password=hunter2",
        "redis://:hunter2@h:6379/0",
        "redis://:hun/hunter2@h:6379/0",
        "redis://:hunter2[w@h/0",
        "redis://:p#hunter2@h/0",
        "redis://:x?hunter2@h/0",
        "redis:/:hunter2@h",
        "redis://h/0#hunter2",
    ],
)
def test_no_error_repeats_what_may_be_a_password(url: str) -> None:
    with pytest.raises(SettingError) as caught:
        parse(url)
    assert "hunter2" not in str(caught.value)


def test_a_path_may_have_an_at_sign_in_it() -> None:
    parse("sqlite:///srv/a@b.db")
