"""Who the cloud is, and whom it lets in. In: the state folder; a device's name, secret and address. Out: admissions.

The pieces are `certificates` (who the cloud is), `registry` (who is enrolled), `tokens` (what a device carries) and
`loopback` (devices on the same machine need no set-up).
"""

from __future__ import annotations

import hmac
import os
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from task_offload.errors import ConfigError
from task_offload.transport.certificates import load_or_make_certificate, server_context
from task_offload.transport.loopback import is_loopback_address, leave_loopback_token, remove_loopback_token
from task_offload.transport.registry import EnrolledDevice, Registry
from task_offload.transport.tokens import TOKEN_VARIABLE, Token, check_device_name, format_token


def default_state_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """$STATE_DIRECTORY (systemd sets it), otherwise task-offload/cloud in the user's folder for state.

    Raises:
        ConfigError: there is no home folder to put it in.
    """
    if folder := environ.get("STATE_DIRECTORY"):
        return Path(folder.split(":")[0])
    if folder := environ.get("XDG_STATE_HOME"):
        return Path(folder) / "task-offload" / "cloud"
    try:
        return Path.home() / ".local" / "state" / "task-offload" / "cloud"
    except RuntimeError as error:
        raise ConfigError("there is no home folder for the server's state; name a folder with --state-dir") from error


@dataclass(frozen=True)
class Admission:
    """A device that was let in. `CloudIdentity.still_admits` says whether that holds.

    Attributes:
        device: its name.
        proof: what would change if the device were enrolled again; None for a device with the loopback token.
    """

    device: str
    proof: bytes | None = field(default=None, repr=False)


class CloudIdentity:
    """The cloud's key, its enrolled devices and its loopback token, all in one state folder.

    Arguments:
        state_dir: the folder; made on the first start, together with the key.
        clock: seconds that never go back.

    Raises:
        ConfigError: the folder or a file in it cannot be used. The message says what to do.
    """

    def __init__(self, state_dir: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._certificate = load_or_make_certificate(state_dir)
        self._registry = Registry(state_dir, clock)
        # Derived, so that it outlives a restart: a device that waits for its server need not look again.
        secret = hmac.digest(self._certificate.pem, b"task-offload loopback token", "sha256")
        self._loopback = Token(None, self._certificate.fingerprint, secret)
        self._loopback_file: Path | None = None

    def enroll(self, name: str) -> str:
        """Enrolls a device, and returns the line to paste on it. The name's earlier token, if any, no longer works.

        Raises:
            ConfigError: the name is not allowed, or the registry cannot be written.
        """
        secret = self._registry.enroll(name)
        token = Token(check_device_name(name), self._certificate.fingerprint, secret)
        return f"export {TOKEN_VARIABLE}='{format_token(token)}'"

    def revoke(self, name: str) -> None:
        """Takes a device's enrolment away. Raises ConfigError if no device has this name."""
        self._registry.revoke(name)

    @property
    def untouched(self) -> bool:
        """Whether no device was ever enrolled here."""
        return self._registry.untouched

    def list_devices(self) -> list[EnrolledDevice]:
        """The enrolled devices, by name."""
        return self._registry.list_devices()

    def tls(self) -> ssl.SSLContext:
        """A context for all connections of a listener. Raises ConfigError if the key is damaged."""
        return server_context(self._certificate)

    def open_loopback(self, port: int) -> None:
        """Lets devices on this machine find their token for the port. Call it before the first connection is accepted,
        and `close` at the end."""
        self._loopback_file = leave_loopback_token(port, self._loopback)

    def close(self) -> None:
        """Removes the loopback token's file. A second call does nothing."""
        if self._loopback_file is not None:
            remove_loopback_token(self._loopback_file, self._loopback)
            self._loopback_file = None

    def admit(self, device: str, secret: bytes, peer_address: str) -> Admission | None:
        """Decides on a device that has introduced itself. It always looks for changes first, so that a device may
        come in the moment after it was enrolled.

        Arguments:
            device: the name that it claims.
            secret: what it sent to prove it.
            peer_address: numeric address of its end of the connection. The loopback token counts from loopback only.

        Returns:
            None if it is to be refused.
        """
        self._registry.look()
        try:
            name = check_device_name(device)
        except ConfigError:
            return None
        enrolled = self._registry.verify(name, secret)
        if enrolled is not None:
            return Admission(name, enrolled.proof)
        if hmac.compare_digest(secret, self._loopback.secret) and is_loopback_address(peer_address):
            return Admission(name)
        return None

    def still_admits(self, admission: Admission) -> bool:
        """False once the device has been revoked or enrolled again. As of the last `refresh`."""
        return admission.proof is None or admission.proof == self._registry.proof(admission.device)

    def refresh(self) -> None:
        """Sees which devices were enrolled or revoked meanwhile. It looks at most once a second, so call it at least
        that often."""
        self._registry.refresh()
