"""Which devices are enrolled. In: names from the administrator, secrets from devices. Out: who may come in.

The registry is one JSON file in the state folder. The administrator's commands write it from another process; the
server sees that by one `stat` a second. Secrets stand in it as salted SHA-256. A slow hash, as for passwords, would add
nothing: a secret has 256 random bits, and nobody can try them out at any speed.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from task_offload.errors import ConfigError
from task_offload.transport.private_files import folder_lock, make_state_folder, read_private, write_private
from task_offload.transport.tokens import SECRET_BYTES, check_device_name

log = logging.getLogger(__name__)

FILE_NAME = "devices.json"
BACKUP_NAME = "devices.json.backup"
LOOK_INTERVAL_S = 1.0  # half of the 2 s in which a revocation takes effect; the rest is the listener's

_SCHEMA = 1
_SALT_BYTES = 16


@dataclass(frozen=True)
class EnrolledDevice:
    """One device of the registry. `proof` is the salted hash of its secret, and changes with it."""

    name: str
    enrolled_at: float
    salt: bytes
    proof: bytes


_NOBODY = EnrolledDevice("", 0.0, bytes(_SALT_BYTES), bytes(32))


class Registry:
    """The enrolled devices of one state folder. Any thread may ask; each change goes through the folder's lock.

    Arguments:
        state_dir: the folder; made where it is missing.
        clock: seconds that never go back.
        wall_clock: Unix seconds, for `enrolled_at`.

    Raises:
        ConfigError: the file cannot be read. The message says what to do.
    """

    def __init__(
        self,
        state_dir: Path,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._folder = make_state_folder(state_dir)
        self._path = state_dir / FILE_NAME
        self._clock = clock
        self._wall_clock = wall_clock
        self._looked_s = clock()
        self._version = self._stat()
        self._devices: Mapping[str, EnrolledDevice] = self._load()

    def enroll(self, name: str) -> bytes:
        """Enrolls a device and returns its new secret, which is stored nowhere. For a name that is enrolled already,
        the new secret takes the place of the earlier one: the remedy for a token that was lost or seen by others.

        Raises:
            ConfigError: the name is not allowed, or the file cannot be read or written.
        """
        name = check_device_name(name)
        secret = secrets.token_bytes(SECRET_BYTES)
        salt = secrets.token_bytes(_SALT_BYTES)
        device = EnrolledDevice(name, self._wall_clock(), salt, _proof(salt, secret))
        self._edit(lambda devices: {**devices, name: device})
        return secret

    def revoke(self, name: str) -> None:
        """Takes a device's enrolment away.

        Raises:
            ConfigError: no device has this name, or the file cannot be read or written.
        """

        def without(devices: Mapping[str, EnrolledDevice]) -> dict[str, EnrolledDevice]:
            if name not in devices:
                known = ", ".join(sorted(devices)) or "none"
                raise ConfigError(f"no device named {name!a} is enrolled (enrolled: {known})")
            return {key: device for key, device in devices.items() if key != name}

        name = check_device_name(name)
        self._edit(without)

    @property
    def untouched(self) -> bool:
        """Whether no device was ever enrolled here."""
        return self._stat() is None

    def list_devices(self) -> list[EnrolledDevice]:
        """The enrolled devices by name, as they were at the last look."""
        return [self._devices[name] for name in sorted(self._devices)]

    def verify(self, name: str, secret: bytes) -> EnrolledDevice | None:
        """The device with this name, if this is its secret. It takes the same time whatever is wrong."""
        device = self._devices.get(name)
        known = device or _NOBODY
        return device if hmac.compare_digest(_proof(known.salt, secret), known.proof) else None

    def proof(self, name: str) -> bytes | None:
        """What changes when a device is enrolled again, and is None when it is not enrolled."""
        device = self._devices.get(name)
        return device.proof if device else None

    def refresh(self) -> None:
        """Reads the file if it has changed. It looks at most once a second, and is cheap enough for every pass of a
        loop."""
        now_s = self._clock()
        if now_s - self._looked_s >= LOOK_INTERVAL_S:
            self._looked_s = now_s
            self.look()

    def look(self) -> None:
        """The same at once, for a device that knocks right after it was enrolled. A damaged file is logged, and what
        was known before stays in force."""
        version = self._stat()
        if version == self._version:
            return
        self._version = version
        try:
            self._devices = self._load()
        except ConfigError as error:
            log.error("%s; until then the devices that were enrolled before are let in", error)

    def _stat(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def _load(self) -> dict[str, EnrolledDevice]:
        try:
            content = read_private(self._path)
        except FileNotFoundError:
            return {}
        try:
            return _decode(content)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, ConfigError) as error:
            backup = self._folder / BACKUP_NAME
            advice = "remove it"
            if backup.exists():
                advice = f"the list before its last change is in {backup}: copy that over it, or remove both"
            raise ConfigError(
                f"{self._path}: the list of enrolled devices is damaged ({error}); {advice} and enroll every device "
                "again"
            ) from error

    def _edit(self, change: Callable[[Mapping[str, EnrolledDevice]], dict[str, EnrolledDevice]]) -> None:
        with folder_lock(self._folder):
            before = self._load()
            after = change(before)
            if self._path.exists():
                write_private(self._folder / BACKUP_NAME, _encode(before))
            write_private(self._path, _encode(after))
            self._version = self._stat()
            self._devices = after


def _proof(salt: bytes, secret: bytes) -> bytes:
    return hashlib.sha256(salt + secret).digest()


def _encode(devices: Mapping[str, EnrolledDevice]) -> bytes:
    entries = {
        name: {"enrolled_at": device.enrolled_at, "salt": device.salt.hex(), "proof": device.proof.hex()}
        for name, device in sorted(devices.items())
    }
    return json.dumps({"schema": _SCHEMA, "devices": entries}, indent=1, ensure_ascii=False).encode()


def _decode(content: bytes) -> dict[str, EnrolledDevice]:
    stored = json.loads(content)
    if stored["schema"] != _SCHEMA:
        raise ValueError(f"its schema is {stored['schema']}, this program knows {_SCHEMA}")
    devices = {}
    for name, entry in stored["devices"].items():
        device = EnrolledDevice(
            check_device_name(name),
            float(entry["enrolled_at"]),
            bytes.fromhex(entry["salt"]),
            bytes.fromhex(entry["proof"]),
        )
        if len(device.salt) != _SALT_BYTES or len(device.proof) != len(_NOBODY.proof):
            raise ValueError(f"the entry of {name!a} has a wrong length")
        devices[device.name] = device
    return devices
