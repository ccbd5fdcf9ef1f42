from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from task_offload.errors import ConfigError
from task_offload.transport.registry import BACKUP_NAME, FILE_NAME, Registry


class Clock:
    now_s = 50.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(tmp_path: Path, clock: Clock) -> Registry:
    return Registry(tmp_path, clock, lambda: 1_700_000_000.0)


def test_an_enrolled_device_proves_itself_by_its_secret(registry: Registry) -> None:
    secret = registry.enroll("pi")
    other = registry.enroll("other")
    assert len(secret) == 32
    found = registry.verify("pi", secret)
    assert found is not None
    assert (found.name, found.enrolled_at) == ("pi", 1_700_000_000.0)
    for name, wrong in [
        ("pi", other),
        ("other", secret),
        ("nobody", secret),
        ("pi", b""),
        ("pi", bytes(32)),
        ("", b""),
    ]:
        assert registry.verify(name, wrong) is None


def test_enrolling_again_replaces_the_secret(registry: Registry) -> None:
    earlier = registry.enroll("pi")
    proof = registry.proof("pi")
    later = registry.enroll("pi")
    assert registry.verify("pi", earlier) is None
    assert registry.verify("pi", later)
    assert registry.proof("pi") != proof
    assert len(registry.list_devices()) == 1


def test_a_revoked_device_is_nobody(registry: Registry) -> None:
    secret = registry.enroll("pi")
    registry.enroll("garden")
    registry.revoke("pi")
    assert registry.verify("pi", secret) is None
    assert registry.proof("pi") is None
    assert [device.name for device in registry.list_devices()] == ["garden"]
    with pytest.raises(ConfigError, match=r"no device named 'pi' is enrolled \(enrolled: garden\)"):
        registry.revoke("pi")


def test_names_are_normalised_everywhere(registry: Registry) -> None:
    secret = registry.enroll("Ku\u0308che")
    assert registry.verify("K\u00fcche", secret)
    registry.revoke("Ku\u0308che")
    assert registry.list_devices() == []
    with pytest.raises(ConfigError, match="device name"):
        registry.enroll("a/b")


def test_secrets_are_not_on_disk(registry: Registry, tmp_path: Path) -> None:
    secret = registry.enroll("pi")
    registry.enroll("other")
    for name in (FILE_NAME, BACKUP_NAME):
        content = (tmp_path / name).read_bytes()
        assert secret not in content
        assert secret.hex().encode() not in content
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600


def test_a_change_by_another_process_is_seen_within_a_second(registry: Registry, tmp_path: Path, clock: Clock) -> None:
    command = Registry(tmp_path)
    secret = command.enroll("pi")
    clock.now_s += 0.9
    registry.refresh()
    assert registry.verify("pi", secret) is None
    clock.now_s += 0.1
    registry.refresh()
    assert registry.verify("pi", secret)
    command.revoke("pi")
    clock.now_s += 1
    registry.refresh()
    assert registry.verify("pi", secret) is None


def test_a_device_may_come_right_after_it_was_enrolled(registry: Registry, tmp_path: Path) -> None:
    secret = Registry(tmp_path).enroll("pi")
    registry.look()
    assert registry.verify("pi", secret)


def test_changes_at_once_lose_none(tmp_path: Path) -> None:
    registries = [Registry(tmp_path) for _ in range(4)]

    def enroll(number: int) -> None:
        for each in range(10):
            registries[number].enroll(f"device-{number}-{each}")

    threads = [threading.Thread(target=enroll, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Registry(tmp_path).list_devices()) == 40


DAMAGES = [
    b"", b"{", b"[]", b"null", b"\xff",
    b'{"schema": 2, "devices": {}}', b'{"schema": 1, "devices": []}', b'{"schema": 1}',
    b'{"schema": 1, "devices": {"pi": {}}}', b'{"schema": 1, "devices": {"a/b": {}}}',
    b'{"schema": 1, "devices": {"pi": {"enrolled_at": 1, "salt": "00", "proof": "00"}}}',
    b'{"schema": 1, "devices": {"pi": {"enrolled_at": "x", "salt": "00", "proof": "zz"}}}',
    b"[" * 100_000,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage[:30].decode("latin-1"))
def test_a_damaged_file_names_the_backup_which_mends_it(tmp_path: Path, damage: bytes) -> None:
    registry = Registry(tmp_path)
    secret = registry.enroll("pi")
    registry.enroll("garden")
    (tmp_path / FILE_NAME).write_bytes(damage)
    for attempt in (lambda: Registry(tmp_path), lambda: registry.enroll("new"), lambda: registry.revoke("pi")):
        with pytest.raises(ConfigError, match=BACKUP_NAME):
            attempt()
    assert (tmp_path / FILE_NAME).read_bytes() == damage
    (tmp_path / FILE_NAME).write_bytes((tmp_path / BACKUP_NAME).read_bytes())
    assert Registry(tmp_path).verify("pi", secret)


def test_a_backup_that_is_not_there_is_not_named(registry: Registry, tmp_path: Path) -> None:
    registry.enroll("pi")
    (tmp_path / FILE_NAME).write_bytes(b"{")
    with pytest.raises(ConfigError, match=r"\); remove it and enroll every device again$"):
        Registry(tmp_path)


def test_a_file_damaged_under_a_running_server_changes_nothing_and_is_told(
    registry: Registry, tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    secret = registry.enroll("pi")
    whole = (tmp_path / FILE_NAME).read_bytes()
    (tmp_path / FILE_NAME).write_bytes(b"{")
    for _ in range(3):
        clock.now_s += 1
        registry.refresh()
    assert registry.verify("pi", secret)
    assert len(caplog.records) == 1
    (tmp_path / FILE_NAME).write_bytes(whole)
    Registry(tmp_path).revoke("pi")
    clock.now_s += 1
    registry.refresh()
    assert registry.verify("pi", secret) is None


def test_a_removed_file_means_that_nobody_is_enrolled(registry: Registry, tmp_path: Path, clock: Clock) -> None:
    secret = registry.enroll("pi")
    (tmp_path / FILE_NAME).unlink()
    clock.now_s += 1
    registry.refresh()
    assert registry.verify("pi", secret) is None


def test_a_list_that_others_can_read_is_refused(registry: Registry, tmp_path: Path) -> None:
    registry.enroll("pi")
    (tmp_path / FILE_NAME).chmod(0o644)
    with pytest.raises(ConfigError, match="other users may have read"):
        Registry(tmp_path)


def test_the_file_can_be_read_by_people(registry: Registry, tmp_path: Path) -> None:
    registry.enroll("Küche")
    stored = json.loads((tmp_path / FILE_NAME).read_text())
    assert stored["schema"] == 1
    assert stored["devices"]["Küche"]["enrolled_at"] == 1_700_000_000.0
