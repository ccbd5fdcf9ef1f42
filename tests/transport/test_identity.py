from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from task_offload.errors import ConfigError
from task_offload.transport.certificates import client_context
from task_offload.transport.identity import Admission, CloudIdentity, default_state_dir
from task_offload.transport.loopback import find_loopback_token, find_token
from task_offload.transport.tokens import Token, parse_token

pytest.importorskip("cryptography")

PUBLIC = "203.0.113.7"


class Clock:
    now_s = 10.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture(autouse=True)
def _runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runtime").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cloud(tmp_path: Path, clock: Clock) -> CloudIdentity:
    return CloudIdentity(tmp_path / "state", clock)


def pasted(line: str) -> Token:
    """The token of a line as a shell would take it."""
    assert line.startswith("export OFFLOAD_TOKEN='")
    assert line.endswith("'")
    return parse_token(line.removeprefix("export OFFLOAD_TOKEN='").removesuffix("'"))


def test_a_pasted_token_admits_its_device_from_anywhere(cloud: CloudIdentity) -> None:
    token = pasted(cloud.enroll("garden"))
    assert token.device == "garden"
    for address in (PUBLIC, "127.0.0.1"):
        admission = cloud.admit("garden", token.secret, address)
        assert admission is not None
        assert admission.device == "garden"
        assert cloud.still_admits(admission)
    assert cloud.admit("kitchen", token.secret, PUBLIC) is None
    assert cloud.admit("garden", bytes(32), PUBLIC) is None
    assert cloud.admit("../garden", token.secret, PUBLIC) is None


def test_a_command_of_another_process_reaches_the_running_server(
    cloud: CloudIdentity, tmp_path: Path, clock: Clock
) -> None:
    command = CloudIdentity(tmp_path / "state")
    token = pasted(command.enroll("garden"))
    admission = cloud.admit("garden", token.secret, PUBLIC)
    assert admission is not None
    command.revoke("garden")
    assert cloud.still_admits(admission)
    clock.now_s += 1
    cloud.refresh()
    assert not cloud.still_admits(admission)
    assert cloud.admit("garden", token.secret, PUBLIC) is None


def test_enrolling_again_shuts_out_the_earlier_token(cloud: CloudIdentity) -> None:
    earlier = pasted(cloud.enroll("garden"))
    admission = cloud.admit("garden", earlier.secret, PUBLIC)
    later = pasted(cloud.enroll("garden"))
    assert admission is not None
    assert not cloud.still_admits(admission)
    assert later.fingerprint == earlier.fingerprint
    renewed = cloud.admit("garden", later.secret, PUBLIC)
    assert renewed is not None
    assert cloud.still_admits(renewed)
    assert [device.name for device in cloud.list_devices()] == ["garden"]


def test_tokens_survive_a_restart_and_a_move_but_not_a_lost_state(tmp_path: Path) -> None:
    token = pasted(CloudIdentity(tmp_path / "state").enroll("garden"))
    (tmp_path / "state").rename(tmp_path / "moved")
    assert CloudIdentity(tmp_path / "moved").admit("garden", token.secret, PUBLIC)
    rebuilt = CloudIdentity(tmp_path / "new")
    assert rebuilt.admit("garden", token.secret, PUBLIC) is None
    assert pasted(rebuilt.enroll("garden")).fingerprint != token.fingerprint


def test_a_loopback_token_lets_any_name_in_from_loopback_only(cloud: CloudIdentity) -> None:
    cloud.open_loopback(65_001)
    token = find_loopback_token(65_001)
    assert token is not None
    assert token.device is None
    for address in ("127.0.0.1", "::1", "::ffff:127.0.0.1"):
        for name in ("one", "two"):
            assert cloud.admit(name, token.secret, address) == Admission(name)
    assert cloud.admit("one", token.secret, PUBLIC) is None
    assert cloud.admit("", token.secret, "127.0.0.1") is None
    assert cloud.still_admits(Admission("one"))
    cloud.close()
    cloud.close()
    assert find_loopback_token(65_001) is None


def test_the_loopback_token_outlives_a_restart(cloud: CloudIdentity, tmp_path: Path) -> None:
    cloud.open_loopback(65_002)
    token = find_loopback_token(65_002)
    again = CloudIdentity(tmp_path / "state")
    again.open_loopback(65_002)
    assert find_loopback_token(65_002) == token
    again.close()
    other = CloudIdentity(tmp_path / "other")
    assert token is not None
    assert other.admit("pi", token.secret, "127.0.0.1") is None


def test_a_device_on_the_same_machine_joins_without_set_up(cloud: CloudIdentity) -> None:
    admissions: list[Admission | None] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        cloud.open_loopback(port)

        def serve() -> None:
            connection, address = server.accept()
            with cloud.tls().wrap_socket(connection, server_side=True) as secured:
                admissions.append(cloud.admit("pi", secured.recv(32), address[0]))

        thread = threading.Thread(target=serve)
        thread.start()
        token = find_token("localhost", port, {})
        assert token is not None
        plain = socket.create_connection(("127.0.0.1", port), timeout=10)
        with client_context().wrap_socket(plain) as secured:
            assert token.trusts(secured.getpeercert(binary_form=True))
            secured.sendall(token.secret)
            thread.join(10)
    cloud.close()
    assert admissions == [Admission("pi")]


def test_names_that_are_not_allowed_are_not_enrolled(cloud: CloudIdentity) -> None:
    with pytest.raises(ConfigError, match="device name"):
        cloud.enroll("a/b")
    assert cloud.list_devices() == []


def test_the_state_s_default_place(monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_state_dir({"STATE_DIRECTORY": "/var/lib/a:/var/lib/b"}) == Path("/var/lib/a")
    assert default_state_dir({"XDG_STATE_HOME": "/x"}) == Path("/x/task-offload/cloud")
    monkeypatch.setenv("HOME", "/home/me")
    assert default_state_dir({}) == Path("/home/me/.local/state/task-offload/cloud")


def test_secrets_are_not_shown(cloud: CloudIdentity) -> None:
    token = pasted(cloud.enroll("pi"))
    admission = cloud.admit("pi", token.secret, PUBLIC)
    assert repr(admission) == "Admission(device='pi')"
