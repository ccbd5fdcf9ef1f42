"""Files and folders that only their owner can read. In: a path and bytes. Out: the same, or an error that names both.

A file comes into being whole and private: it is written under another name with mode 0600, flushed to the disk, and
then renamed. As ssh does, a private file that others can read is refused, not mended: who has read it meanwhile is
unknown, and the user should decide.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from task_offload.errors import ConfigError

_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def make_state_folder(folder: Path) -> Path:
    """Makes the folder with mode 0700 where it is missing, parents too.

    An existing folder may be readable by others, since the files in it are not, but not writable: whoever writes to it
    can exchange the files.

    Raises:
        ConfigError: it cannot be made, is no folder, or is not ours alone to write to.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.stat()
    except OSError as error:
        raise ConfigError(
            f"{folder}: this folder cannot be used ({error.strerror}); choose another --state-dir"
        ) from error
    if not stat.S_ISDIR(found.st_mode):
        raise ConfigError(f"{folder}: this is not a folder; choose another --state-dir")
    if os.geteuid() not in (0, found.st_uid):
        raise ConfigError(f"{folder}: this folder belongs to another user; choose another --state-dir, or be that user")
    if found.st_mode & _OTHERS_WRITE:
        raise ConfigError(f"{folder}: other users may write to this folder; run  chmod go-w {folder}")
    return folder


def is_private_folder(folder: Path) -> bool:
    """Whether it is a folder (not a link to one), ours, and closed to others: right for a place under /tmp."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & _OTHERS


def read_private(path: Path) -> bytes:
    """The file's content.

    Raises:
        FileNotFoundError: there is no such file.
        ConfigError: it cannot be read, is a link, or other users can read it.
    """
    try:
        # O_NONBLOCK: a named pipe in its place must not hang us.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigError(f"{path}: this private file cannot be read ({error.strerror})") from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError(f"{path}: this is not a file; remove it")
        if os.geteuid() not in (0, found.st_uid):
            raise ConfigError(f"{path}: this private file belongs to another user; run as that user")
        if found.st_mode & _OTHERS:
            raise ConfigError(
                f"{path}: other users may have read this private file; run  chmod 600 {path}  if you trust them "
                "all, otherwise remove it and enroll the devices again"
            )
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def write_private(path: Path, content: bytes) -> None:
    """Puts a file of mode 0600 in place, atomically and durably. Under root it goes to the owner of its folder, so that
    an administrator's command does not lock out the service whose folder it is.

    Raises:
        ConfigError: it cannot be written; an earlier file is as it was.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        try:
            with os.fdopen(_create(temporary), "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise ConfigError(f"{path}: this file cannot be written ({error.strerror})") from error


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Holds the folder's lock against every other thread and process, for as long as the context lasts.

    Raises:
        ConfigError: the lock file cannot be opened.
    """
    import fcntl  # not on Windows, where a device may run but no cloud does

    path = folder / "lock"
    try:
        try:
            descriptor = _create(path)
        except FileExistsError:
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"{path}: the lock cannot be opened ({error.strerror})") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _create(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    if os.geteuid() == 0:
        owner = path.parent.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
    return descriptor
