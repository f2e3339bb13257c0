"""Why an installer failed, from the output of pip 26, pip 23 and uv 0.13."""

from __future__ import annotations

import pytest

from emberd.installs import installer
from emberd.system import process_env

RETRYING = (
    "WARNING: Retrying (Retry(total=4, connect=None, read=None, redirect=None, status=None)) "
    "after connection broken by 'NewConnectionError('<pip._vendor.urllib3.connection."
    "HTTPSConnection object at 0x7f>: Failed to establish a new connection: [Errno -2] Name or "
    "service not known')': /simple/sglang/\n"
    "ERROR: Could not find a version that satisfies the requirement sglang==0.5.23 "
    "(from versions: none)\nERROR: No matching distribution found for sglang==0.5.23\n"
)


@pytest.mark.parametrize(
    ("said", "cause", "final"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
         "the disk is full", True),
        ("error: Failed to write to the cache\n  Caused by: No space left on device (os error 28)",
         "the disk is full", True),
        (RETRYING, "the package index does not answer", False),
        (RETRYING + "OSError: [Errno 28] No space left on device", "the disk is full", True),
        ("error: Failed to fetch: `x`\n Caused by: dns error: failed to lookup address information",
         "the package index does not answer", False),
        ("ERROR: HTTP error 403 while getting x\nERROR: 403 Client Error: Forbidden for url: x",
         "the package index refuses access", False),
        ("WARNING: 'SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED]'))'",
         "the package index's certificate is not trusted on this machine", False),
        ("ERROR: No matching distribution found for sglang==0.5.23",
         "the package index lacks a required package", False),
        ("The virtual environment was not created successfully because ensurepip is not available",
         "this Python cannot create environments", True),
        ("ERROR: Could not install packages due to an OSError: [Errno 13] Permission denied: '/x'",
         "a file or folder is not writable", True),
        ("Killed", "the installer ended with code -9", False),
    ],
)  # fmt: skip
def test_installer_output_is_diagnosed(said: str, cause: str, final: bool) -> None:
    found = installer.diagnose(-9, said)
    assert (found.cause, found.final) == (cause, final)
    assert found.advice


def test_last_lines_contain_no_password_and_no_noise() -> None:
    said = (
        "first\n\nLooking in indexes: https://user:secret@index.example/simple\n"
        "WARNING: Location 'file:///x' is ignored\n$ uv pip install\n"
        "[notice] A new release of pip\nlast\n"
    )
    assert installer.last_lines(said, 2) == (
        "Looking in indexes: https://***@index.example/simple / last"
    )


def test_installer_keeps_settings_of_the_index() -> None:
    kept = {
        "HOME": "/h",
        "HTTPS_PROXY": "p",
        "PATH": "/bin",
        "PIP_CACHE_DIR": "c",
        "PIP_CONSTRAINT": "f",
        "PIP_EXTRA_INDEX_URL": "y",
        "PIP_INDEX_URL": "x",
        "SSL_CERT_FILE": "s",
        "UV_CACHE_DIR": "c",
        "UV_INDEX_URL": "x",
    }
    dropped = (
        *("PIP_REQUIRE_VIRTUALENV", "PIP_TARGET", "PIP_PREFIX", "PIP_DRY_RUN", "PIP_NO_DEPS"),
        *("PYTHONHOME", "PYTHONPATH", "PYTHONWARNINGS", "UV_PYTHON", "UV_SYSTEM_PYTHON"),
        *("VIRTUAL_ENV", "__PYVENV_LAUNCHER__"),
    )
    given = {**kept, **dict.fromkeys(dropped, "x"), "PIP_USER": "1", "TMPDIR": "/small"}
    assert process_env.for_installer("/engines/x", "/engines/x.tmp", given) == {
        **kept,
        "EMBERD_MARK": "/engines/x:install",
        "PIP_USER": "0",
        "TMPDIR": "/engines/x.tmp",
    }
