"""Loopback without set-up. In: a port. Out: the token that this machine's server left for its own user.

The server leaves the token in a file that only its user can read, named after the port, so that servers side by side do
not meet. What a killed server leaves behind is harmless: a device sends a secret only to the certificate that the same
token names, and the next server on that port writes its own.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from task_offload.errors import ConfigError
from task_offload.transport.private_files import is_private_folder, read_private, write_private
from task_offload.transport.tokens import Token, format_token, parse_token, token_from_environment

log = logging.getLogger(__name__)


def is_loopback_address(address: str) -> bool:
    """Whether a numeric address is in 127.0.0.0/8 or is ::1, also when written as an IPv6 address (::ffff:127.0.0.1).
    False for anything else, names included."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return (mapped or parsed).is_loopback


def is_loopback_host(host: str) -> bool:
    """Whether a name or address means this machine, by loopback alone. False if it cannot be resolved."""
    try:
        found = socket.getaddrinfo(host or "0.0.0.0", None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    return bool(found) and all(is_loopback_address(str(each[4][0])) for each in found)


def check_no_tls_addresses(*hosts: str) -> None:
    """Allows `--no-tls` between loopback addresses. Give it the address to listen on, or both ends of a connection.

    Raises:
        ConfigError: one of them is not loopback.
    """
    for host in hosts:
        if not is_loopback_host(host):
            raise ConfigError(
                f"--no-tls is for measurements on one machine, and {host or '0.0.0.0'} is not a loopback address; use "
                "127.0.0.1 or leave --no-tls out"
            )


def find_token(host: str, port: int, environ: Mapping[str, str] = os.environ) -> Token | None:
    """The token with which this device joins: of the environment, or for a loopback host the server's own.

    Returns:
        None for a loopback host without a token yet: its server may not have started. Ask again at each attempt.

    Raises:
        ConfigError: there is none, or it is not whole.
    """
    token = token_from_environment(environ)
    if token is not None:
        return token
    if is_loopback_host(host):
        return find_loopback_token(port)
    raise ConfigError(
        f"this device has no token for {host}: run  python3 cloud_server_coordinator.py --enroll NAME  on the server, "
        "and paste here the line that it prints"
    )


def find_loopback_token(port: int) -> Token | None:
    """The token that a server of this user on this machine left for the port; None where there is none."""
    for folder in _folders():
        if is_private_folder(folder):
            with suppress(OSError, UnicodeDecodeError, ConfigError):
                return parse_token(read_private(_file(folder, port)).decode())
    return None


def leave_loopback_token(port: int, token: Token) -> Path | None:
    """Leaves the token for devices of this user on this machine. Call it before the first connection is accepted.

    Returns:
        The file, for `remove_loopback_token`. None if there is no place for it, which is logged: devices on this
        machine then need a token as all others do.
    """
    folder = next(_folders())
    try:
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        if not is_private_folder(folder):
            raise ConfigError(f"{folder} is not a folder of this user alone; remove it")
        write_private(_file(folder, port), format_token(token).encode())
    except (OSError, ConfigError) as error:
        log.warning("devices on this machine need a token too: %s", error)
        return None
    return _file(folder, port)


def remove_loopback_token(path: Path, token: Token) -> None:
    """Removes what `leave_loopback_token` left, unless another server has written its own there since."""
    with suppress(OSError, UnicodeDecodeError, ConfigError):
        if parse_token(read_private(path).decode()) == token:
            path.unlink()


def _file(folder: Path, port: int) -> Path:
    return folder / f"loopback-{port}"


def _folders() -> Iterator[Path]:
    """Where the token may lie, best place first. The device looks at all of them: the two sides may have been started
    with different environments, one from a desktop and one over ssh."""
    if os.name != "posix":
        return
    name = f"task-offload-{os.geteuid()}"
    for parent in (os.environ.get("XDG_RUNTIME_DIR"), f"/run/user/{os.geteuid()}"):
        if parent and Path(parent).is_dir():
            yield Path(parent) / name
    yield Path(tempfile.gettempdir()) / name
