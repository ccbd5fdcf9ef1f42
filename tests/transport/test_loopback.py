from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from task_offload.errors import ConfigError
from task_offload.transport.loopback import (
    check_no_tls_addresses,
    find_loopback_token,
    find_token,
    is_loopback_address,
    is_loopback_host,
    leave_loopback_token,
    remove_loopback_token,
)
from task_offload.transport.tokens import Token, format_token

TOKEN = Token(None, bytes(32), bytes(range(32)))
OTHER = Token(None, bytes(32), bytes(range(1, 33)))
PORT = 65_000


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime folder of our own, so that no server of this machine is in the way."""
    folder = tmp_path / "runtime"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    return folder


@pytest.mark.parametrize("address", ["127.0.0.1", "127.255.0.9", "::1", "::ffff:127.0.0.1"])
def test_loopback_addresses(address: str) -> None:
    assert is_loopback_address(address)
    check_no_tls_addresses(address, address)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "0.0.0.0",
        "::",
        "10.0.0.1",
        "203.0.113.7",
        "::ffff:10.0.0.1",
        "fe80::1",
        "fe80::1%eth0",
        "::127.0.0.1",
        "128.0.0.1",
    ],
)
def test_other_addresses(address: str) -> None:
    assert not is_loopback_address(address)
    for hosts in ([address], ["127.0.0.1", address]):
        with pytest.raises(ConfigError, match=r"--no-tls .* not a loopback address"):
            check_no_tls_addresses(*hosts)


def test_names_mean_loopback_only_where_they_resolve_to_it() -> None:
    assert is_loopback_host("localhost")
    assert not is_loopback_address("localhost")
    assert not is_loopback_host("a\x00b")
    assert not is_loopback_host("x" * 300)


def test_a_device_finds_what_its_server_left(runtime: Path) -> None:
    path = leave_loopback_token(PORT, TOKEN)
    assert path is not None
    assert path.is_relative_to(runtime)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert find_loopback_token(PORT) == TOKEN
    assert find_loopback_token(PORT + 1) is None
    remove_loopback_token(path, TOKEN)
    assert find_loopback_token(PORT) is None


def test_servers_on_several_ports_do_not_meet() -> None:
    first, second = leave_loopback_token(PORT, TOKEN), leave_loopback_token(PORT + 1, OTHER)
    assert find_loopback_token(PORT) == TOKEN
    assert find_loopback_token(PORT + 1) == OTHER
    assert first is not None
    assert second is not None
    remove_loopback_token(first, TOKEN)
    assert find_loopback_token(PORT + 1) == OTHER


def test_a_server_that_ends_leaves_its_successor_s_token_alone() -> None:
    path = leave_loopback_token(PORT, TOKEN)
    leave_loopback_token(PORT, OTHER)
    assert path is not None
    remove_loopback_token(path, TOKEN)
    assert find_loopback_token(PORT) == OTHER
    path.unlink()
    remove_loopback_token(path, TOKEN)
    assert find_loopback_token(PORT) is None


def test_a_device_looks_in_the_temporary_folder_too(
    runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    path = leave_loopback_token(PORT, TOKEN)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    assert find_loopback_token(PORT) == TOKEN
    assert path is not None
    remove_loopback_token(path, TOKEN)


def test_a_place_that_is_not_ours_alone_is_not_used(
    runtime: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = runtime / f"task-offload-{os.geteuid()}"
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "elsewhere")
    with caplog.at_level(logging.WARNING):
        assert leave_loopback_token(PORT, TOKEN) is None
    assert "need a token too" in caplog.text
    assert list((tmp_path / "elsewhere").iterdir()) == []
    folder.unlink()
    folder.mkdir()
    folder.chmod(0o755)
    assert leave_loopback_token(PORT, TOKEN) is None
    (folder / f"loopback-{PORT}").write_text(format_token(TOKEN))
    (folder / f"loopback-{PORT}").chmod(0o600)
    assert find_loopback_token(PORT) is None
    folder.chmod(0o700)
    assert find_loopback_token(PORT) == TOKEN


@pytest.mark.parametrize("content", [b"", b"\xff", format_token(TOKEN)[:30].encode()])
def test_a_damaged_file_is_as_none(content: bytes) -> None:
    path = leave_loopback_token(PORT, TOKEN)
    assert path is not None
    path.write_bytes(content)
    assert find_loopback_token(PORT) is None


def test_the_environment_s_token_comes_first_and_loopback_may_wait() -> None:
    named = Token("pi", bytes(32), bytes(32))
    assert find_token("127.0.0.1", PORT, {}) is None
    leave_loopback_token(PORT, TOKEN)
    assert find_token("127.0.0.1", PORT, {}) == TOKEN
    assert find_token("localhost", PORT, {}) == TOKEN
    assert find_token("127.0.0.1", PORT, {"OFFLOAD_TOKEN": format_token(named)}) == named
    assert find_token("203.0.113.7", PORT, {"OFFLOAD_TOKEN": format_token(named)}) == named
    with pytest.raises(
        ConfigError, match=r"no token for 203\.0\.113\.7: run  python3 cloud_server_coordinator\.py --enroll NAME"
    ):
        find_token("203.0.113.7", PORT, {})
