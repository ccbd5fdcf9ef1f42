from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from task_offload.errors import ConfigError
from task_offload.transport.private_files import (
    folder_lock,
    is_private_folder,
    make_state_folder,
    read_private,
    write_private,
)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_folder_and_its_files_are_for_the_owner_alone(tmp_path: Path) -> None:
    earlier = os.umask(0)
    try:
        folder = make_state_folder(tmp_path / "a" / "b")
        write_private(folder / "file", b"content")
        with folder_lock(folder):
            pass
    finally:
        os.umask(earlier)
    assert mode(folder) == 0o700
    assert mode(folder / "file") == mode(folder / "lock") == 0o600
    assert read_private(folder / "file") == b"content"
    assert is_private_folder(folder)


def test_an_existing_folder_may_be_readable_but_not_writable_by_others(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    folder.chmod(0o755)
    assert make_state_folder(folder) == folder
    assert not is_private_folder(folder)
    for bits in (0o775, 0o757):
        folder.chmod(bits)
        with pytest.raises(ConfigError, match="chmod go-w"):
            make_state_folder(folder)


def test_a_folder_that_cannot_be_used_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "folder", Path("/proc/nothing/here")):
        with pytest.raises(ConfigError, match=r"folder.*choose another --state-dir"):
            make_state_folder(path)


def test_a_file_that_others_can_read_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"secret")
    for bits in (0o640, 0o604, 0o620, 0o644):
        path.chmod(bits)
        with pytest.raises(ConfigError, match=r"other users may have read .* chmod 600"):
            read_private(path)
        assert mode(path) == bits
    path.chmod(0o600)
    assert read_private(path) == b"secret"


def test_links_and_folders_are_no_private_files(tmp_path: Path) -> None:
    write_private(tmp_path / "real", b"secret")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "folder").mkdir(mode=0o700)
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name in ("link", "folder", "pipe"):
        with pytest.raises(ConfigError):
            read_private(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_private(tmp_path / "missing")


def test_a_link_to_a_private_folder_is_not_one(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert is_private_folder(tmp_path / "real")
    assert not is_private_folder(tmp_path / "link")
    assert not is_private_folder(tmp_path / "missing")


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(ConfigError, match="cannot be written"):
        write_private(tmp_path / "taken", b"content")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    with pytest.raises(ConfigError, match="cannot be written"):
        write_private(tmp_path / "missing" / "file", b"content")


def test_a_write_replaces_the_whole_file_even_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"untouched")
    (tmp_path / "file").symlink_to(tmp_path / "elsewhere")
    write_private(tmp_path / "file", b"new")
    assert read_private(tmp_path / "file") == b"new"
    assert (tmp_path / "elsewhere").read_bytes() == b"untouched"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_root_writes_belongs_to_the_folder_s_owner(tmp_path: Path) -> None:
    folder = make_state_folder(tmp_path / "state")
    os.chown(folder, 12345, 23456)
    make_state_folder(folder)
    with folder_lock(folder):
        write_private(folder / "file", b"content")
    for name in ("file", "lock"):
        found = (folder / name).stat()
        assert (found.st_uid, found.st_gid) == (12345, 23456)
    assert read_private(folder / "file") == b"content"


def test_the_lock_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    inside = 0
    most = 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(50):
            with folder_lock(tmp_path):
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
