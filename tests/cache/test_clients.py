"""What a cache imports, and when."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from cache.made import keys, units
from emberd.cache import open_cache, remote, urls
from emberd.errors import SettingError
from managed import environment

HEAVY = ("numpy", "pymemcache", "redis", "sqlite3")


def test_looking_at_a_url_imports_nothing_heavy() -> None:
    program = f"""
import sys
from emberd.cache import open_cache
from emberd.cache.urls import parse
for url in ("sqlite", "redis://h", "memcached://h"):
    parse(url)
print(sorted({{*{HEAVY}}} & {{*sys.modules}}))
open_cache("redis://h")
open_cache("memcached://h")
print(sorted({{"redis", "pymemcache"}} & {{*sys.modules}}))
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True
    )
    assert (ended.stdout, ended.stderr) == ("[]\n[]\n", "")


@pytest.mark.parametrize(
    ("url", "client"), [("redis://localhost", "redis"), ("memcached://localhost", "pymemcache")]
)
def test_missing_client_library_is_named_with_the_command_to_install_it(
    url: str, client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == client]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, client, None)
    cache = open_cache(url)
    extra = url.partition(":")[0]
    with pytest.raises(SettingError, match=rf"pip install 'emberd\[{extra}\]'"):
        cache.get_many(keys([1]))
    with pytest.raises(SettingError, match="not installed"):
        cache.put_many(keys([1]), units([1]))


def test_name_in_the_certificate_of_redis_is_checked() -> None:
    """The client's default depends on its version."""
    client = remote._RedisClient(urls.parse("rediss://localhost:1"), "localhost", 1)
    connection: Any = client._redis.connection_pool.make_connection()
    assert connection.check_hostname
