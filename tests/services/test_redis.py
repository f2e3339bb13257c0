from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import redis

from cache.made import filled, keys, right, units
from emberd.cache import open_cache
from services.conftest import Start
from services.running import Service, program


def client(service: Service, **options: str) -> redis.Redis:
    return redis.Redis(port=service.port, **options)  # type: ignore[arg-type]


def test_corrupt_value_is_removed_and_stored_again(start: Start) -> None:
    service = start("redis")
    cache = filled(service.url, range(10))
    name = f"emberd:{keys([3])[0].hex()}"
    with client(service) as other:
        other.setrange(name, 100, "x")
        assert right(cache, range(10)) == 9
        assert cache.stats().recovered == 1
        assert other.dbsize() == 9
        other.lpush(name, "a list")
        assert right(cache, range(10)) == 9
        cache.put_many(keys([3]), units([3]))
    assert right(cache, range(10)) == 10
    cache.close()


def test_url_sets_database_and_ttl(start: Start) -> None:
    service = start("redis")
    filled(f"{service.url}/3?ttl=12h", range(5))
    with client(service, db="3") as other:
        names = other.keys("emberd:*")
        assert len(names) == 5
        assert all(43000 < other.ttl(name) <= 43200 for name in names)
    filled(f"{service.url}/4", range(5))
    with client(service, db="4") as other:
        assert {other.ttl(name) for name in other.scan_iter()} == {-1}
    assert right(open_cache(f"{service.url}/5"), range(5)) == 0


def test_the_password_comes_from_the_environment(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    service = start("redis", "--requirepass", "geheim")
    for wrong in (None, "falsch"):
        if wrong:
            monkeypatch.setenv("EMBERD_CACHE_PASSWORD", wrong)
        cache = filled(service.url, range(5))
        assert right(cache, range(5)) == 0
        cache.close()
    assert len(caplog.messages) == 4
    assert not any("falsch" in said for said in caplog.messages)
    monkeypatch.setenv("EMBERD_CACHE_PASSWORD", "geheim")
    cache = filled(service.url, range(5))
    assert right(cache, range(5)) == 5
    assert "geheim" not in repr(cache) + str(vars(cache))
    cache.close()


def test_user_comes_from_the_environment(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    service = start("redis")
    with client(service) as other:
        other.execute_command("ACL", "SETUSER", "ember", "on", ">geheim", "~emberd:*", "+@all")
        other.execute_command("ACL", "SETUSER", "default", "off")
    monkeypatch.setenv("EMBERD_CACHE_USER", "ember")
    monkeypatch.setenv("EMBERD_CACHE_PASSWORD", "geheim")
    cache = filled(service.url, range(5))
    assert right(cache, range(5)) == 5
    cache.close()


def test_full_server_that_evicts_nothing_serves_what_it_has(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    service = start("redis", "--maxmemory", "3mb", "--maxmemory-policy", "noeviction")
    cache = open_cache(service.url)
    cache.put_many(keys(range(100)), units(range(100)))
    cache.put_many(keys(range(100, 3000)), units(range(100, 3000)))
    assert 100 <= right(cache, range(3000)) < 3000
    assert len(caplog.messages) == 1
    assert "Writing to" in caplog.messages[0]
    cache.close()


def test_server_that_evicts_accepts_new_entries(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    service = start("redis", "--maxmemory", "3mb", "--maxmemory-policy", "allkeys-lru")
    cache = filled(service.url, range(3000))
    assert 10 < right(cache, range(3000)) < 3000
    # Redis drops the oldest of a few that it draws.
    assert right(cache, range(2990, 3000)) > 5
    assert caplog.messages == []
    cache.close()


def test_tls_is_checked_against_the_certificates_that_openssl_knows(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    assert shutil.which("openssl"), "openssl is not installed; it makes this test's certificate"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    files = ["--tls-cert-file", str(certificate), "--tls-key-file", str(key)]
    trust = ["--tls-ca-cert-file", str(certificate), "--tls-auth-clients", "no"]
    service = start("rediss", *files, *trust)
    assert right(filled(service.url, range(5)), range(5)) == 0
    assert "CERTIFICATE_VERIFY_FAILED" in caplog.messages[0]
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    cache = filled(service.url, range(5))
    assert right(cache, range(5)) == 5
    cache.close()


def test_missing_server_program_fails_the_test() -> None:
    with pytest.raises(AssertionError, match="apt-get install"):
        program("redis-server-that-is-not-there")
