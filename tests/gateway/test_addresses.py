"""Where the gateway listens, and where its key comes from."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from command import Command
from emberd.errors import SettingError, StateFolderError
from emberd.gateway.addresses import Addresses, listening, read_keys
from emberd.system import file_lock, ownership
from gateways import serving


def folder(path: Path) -> Path:
    return ownership.make_private(path / "own")


def test_a_key_is_created_once_for_this_user_only(tmp_path: Path) -> None:
    keys, source = read_keys(tmp_path / "gateway", None, None)
    file = tmp_path / "gateway" / "key"
    assert source == str(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(keys[0]) >= 40
    assert read_keys(tmp_path / "gateway", None, None)[0] == keys


def test_gateways_that_start_at_once_get_one_key(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        starts = [pool.submit(read_keys, tmp_path / "gateway", None, None) for _ in range(8)]
        assert len({start.result()[0][0] for start in starts}) == 1


def test_a_start_that_was_killed_leaves_no_part_of_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            read_keys(tmp_path / "gateway", None, None)
    assert not (tmp_path / "gateway" / "key").exists()
    assert read_keys(tmp_path / "gateway", None, None)[0]


@pytest.mark.parametrize(
    "content", [b"", b"\n \n", b"two words", "schlüssel".encode(), b"secret-1\nsecret-\xff\n"]
)
def test_a_key_that_no_client_can_send_is_refused_without_showing_it(
    tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "keys"
    file.write_bytes(content)
    with pytest.raises(SettingError) as refused:
        read_keys(tmp_path, None, file)
    assert str(file) in str(refused.value)
    shown = "".join(traceback.format_exception(refused.value))
    assert not [word for word in content.split() if repr(word)[2:-1] in shown]


@pytest.mark.parametrize("is_link", [False, True])
def test_a_key_that_another_user_can_write_is_refused(tmp_path: Path, is_link: bool) -> None:
    file, link = tmp_path / "keys", tmp_path / "link"
    file.write_text("a-key")
    link.symlink_to(file)
    given = link if is_link else file
    file.chmod(0o600)
    assert read_keys(tmp_path, None, given)[0] == ["a-key"]
    file.chmod(0o622)
    with pytest.raises(StateFolderError):
        read_keys(tmp_path, None, given)


def test_a_key_that_every_user_can_read_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "keys"
    file.write_text("a-key")
    file.chmod(0o604)
    assert read_keys(tmp_path, None, file)[0] == ["a-key"]
    assert [str(file) in record.message for record in caplog.records] == [True]
    assert "a-key" not in caplog.text


def test_a_key_from_two_places_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError):
        read_keys(tmp_path, "key", tmp_path / "keys")


def test_a_socket_that_a_killed_gateway_left_is_replaced(tmp_path: Path) -> None:
    own = folder(tmp_path)
    path = own / "emberd.sock"
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(path))
    with listening(Addresses(own, port=None)) as ((listener,), _):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
        assert listener.getsockname() == str(path)
    assert not path.exists()


def test_a_second_gateway_on_the_same_socket_is_refused(tmp_path: Path) -> None:
    own = folder(tmp_path)
    with listening(Addresses(own, port=None)):
        with pytest.raises(SettingError, match=str(os.getpid())), listening(Addresses(own)):
            pass
        assert (own / "emberd.sock").exists()


def test_a_start_waits_for_what_removes_the_socket_of_a_killed_gateway(tmp_path: Path) -> None:
    own = folder(tmp_path)
    with ExitStack() as reaper:
        reaper.enter_context(file_lock.held(own / "emberd.sock.lock", 0))
        threading.Timer(0.1, reaper.close).start()
        with listening(Addresses(own, port=None)) as (sockets, _):
            assert len(sockets) == 1


def test_the_socket_of_a_successor_is_not_removed(tmp_path: Path) -> None:
    own = folder(tmp_path)
    path = own / "emberd.sock"
    with listening(Addresses(own, port=None)) as first:
        first.release()
        assert not path.exists()
        with ExitStack() as stack:
            stack.enter_context(listening(Addresses(own, port=None)))
            first.release()
            assert path.exists()
            later = stack.pop_all()
    assert path.exists()
    later.close()
    assert not path.exists()


def test_a_file_that_is_no_socket_is_not_removed(tmp_path: Path) -> None:
    path = folder(tmp_path) / "notes.txt"
    path.write_text("notes")
    with pytest.raises(StateFolderError), listening(Addresses(tmp_path, socket=path)):
        pass
    assert path.read_text() == "notes"


def test_a_folder_in_which_others_can_write_is_refused(tmp_path: Path) -> None:
    own = folder(tmp_path)
    own.chmod(0o777)
    with pytest.raises(StateFolderError), listening(Addresses(tmp_path, socket=own / "s")):
        pass


@pytest.mark.parametrize(
    "addresses",
    [
        Addresses(Path("/nowhere"), port=None, has_socket=False),
        Addresses(Path("/nowhere"), host="not-a-number", has_socket=False),
        Addresses(Path("/nowhere"), host="192.0.2.1", has_socket=False),
    ],
)
def test_addresses_that_cannot_be_used_are_refused(addresses: Addresses) -> None:
    with pytest.raises(SettingError), listening(addresses):
        pass


def test_a_path_that_is_too_long_is_refused(tmp_path: Path) -> None:
    path = folder(tmp_path) / ("s" * 108)
    with pytest.raises(SettingError, match="107"):
        with listening(Addresses(tmp_path, socket=path)):
            pass


def test_a_taken_port_ends_the_command_with_the_reason(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        ended = Command(tmp_path / "home")("serve", "emberd/demo", "--port", port)
    assert ended.code == 2
    assert port in ended.err
    assert not (tmp_path / "home" / "gateway" / "emberd.sock").exists()


def test_the_key_of_the_environment_is_taken_out_of_it(tmp_path: Path) -> None:
    variables = {"EMBERD_SERVE_KEY": "key-of-the-environment"}
    with serving(tmp_path / "home", "emberd/demo", environment=variables) as running:
        assert not running.key
        with running.tcp("key-of-the-environment") as client:
            assert client.get("/v1/models").status_code == 200
        assert "key-of-the-environment" not in running.log.read_text()
        # The initial environment of the process shows it still, but to this user only.
        assert stat.S_IMODE(Path(f"/proc/{running.process.pid}/environ").stat().st_mode) == 0o400


_ACTIVATED = """
import fcntl, os, socket, sys
listener = socket.create_server(("127.0.0.1", 0))
own = socket.socket(socket.AF_UNIX)
own.bind(sys.argv[1])
own.listen()
print(listener.getsockname()[1], flush=True)
high = [fcntl.fcntl(each, fcntl.F_DUPFD, 10) for each in (listener, own)]
for place, descriptor in enumerate(high, 3):
    os.dup2(descriptor, place)
os.environ |= {"LISTEN_FDS": "2", "LISTEN_PID": str(os.getpid())}
os.execv(sys.executable, [sys.executable, "-m", "emberd", "serve", "emberd/demo"])
"""


def test_sockets_of_systemd_are_used_instead_of_others(tmp_path: Path) -> None:
    home, path = tmp_path / "home", tmp_path / "activated.sock"
    process = subprocess.Popen(
        [sys.executable, "-c", _ACTIVATED, str(path)],
        env=Command(home).environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            client.sendall(b"GET /ready HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert client.recv(15) == b"HTTP/1.1 200 OK"
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.sendall(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert client.recv(15) == b"HTTP/1.1 200 OK"
        assert not (home / "gateway" / "emberd.sock").exists()
        process.terminate()
        assert process.wait(timeout=20) == 0
        assert path.exists()  # it is systemd's
    finally:
        process.kill()
        process.communicate()


def test_sockets_for_another_process_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_PID", "1")
    with listening(Addresses(folder(tmp_path), port=None)) as ((listener,), _):
        assert listener.family == socket.AF_UNIX
