"""Who gets in: tokens and certificates, with real processes."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from task_offload.transport.tokens import Token, format_token, parse_token
from tests.support.processes import PATIENCE_S, ROOT, Lab

pytestmark = pytest.mark.timeout(180)  # processes take their time on a busy machine


def remote(token: str | None, name: str = "device") -> dict[str, str]:
    """The environment of a device that does not find the server's own loopback token."""
    return {"XDG_RUNTIME_DIR": "/nonexistent", "TMPDIR": "/nonexistent", **({"OFFLOAD_TOKEN": token} if token else {})}


def refused(lab: Lab, port: int, token: str, status: int = 1) -> str:
    """A device that is refused at its start ends with a line. Returns it."""
    device = lab.device("counter", "2", "--items", "5", port=port, env=remote(token))
    assert device.finish(status)["items"]["captured"] == 0
    return device.err.splitlines()[-1]


def test_who_gets_in_and_who_does_not(lab: Lab) -> None:
    server = lab.server("counter")
    good = lab.enroll_by_command("kitchen")  # while the server runs
    report = lab.device("counter", "2", "--items", "5", port=server.port, env=remote(good)).finish()
    assert report["items"]["captured"] == 5
    assert {row["device"] for row in server.rows()} == {"kitchen"}, "the token names the device"

    token = parse_token(good)
    wrong_secret = format_token(Token("kitchen", token.fingerprint, bytes(32)))
    line = refused(lab, server.port, wrong_secret)
    assert line.startswith("iot_client_coordinator.py: the token of kitchen is not valid here; run ")
    assert "--enroll kitchen" in line

    unknown = format_token(Token("cellar", token.fingerprint, token.secret))
    assert "the token of cellar is not valid here" in refused(lab, server.port, unknown)

    other_server = format_token(Token("kitchen", bytes(32), token.secret))
    line = refused(lab, server.port, other_server)
    assert "has another certificate than the token names" in line

    enrolled_again = lab.enroll_by_command("kitchen")
    assert "is not valid here" in refused(lab, server.port, good)
    lab.device("counter", "2", "--items", "5", port=server.port, env=remote(enrolled_again)).finish()

    cloud = server.stop()
    assert cloud["rejected"]["token"] == 3, cloud["rejected"]
    assert len(cloud["sessions"]) == 2
    for secret in (good, enrolled_again, token.secret.hex()):
        assert secret not in server.err + server.out


def test_a_device_without_a_token_says_what_to_do(lab: Lab) -> None:
    device = lab.device("counter", "2", "--host", "192.0.2.1", env=remote(None))
    device.wait(None)
    assert device.popen.returncode in (1, 2)
    [line] = device.err.splitlines()[-1:]
    assert "--enroll" in line
    assert "Traceback" not in device.err


def test_a_broken_token_is_one_line(lab: Lab) -> None:
    device = lab.device("counter", "2", "--host", "192.0.2.1", env=remote("offload1_abcdef"))
    device.wait(2)
    assert "OFFLOAD_TOKEN: the token is incomplete: paste the whole line again" in device.err


def test_a_revoked_device_is_shut_out_at_once_and_others_go_on(lab: Lab) -> None:
    server = lab.server("counter", env={"LOUD": "1"})
    gates = {name: lab.gate(name) for name in ("good", "bad")}
    devices = {
        name: lab.device(
            "counter", "2", "--drain", "0.1", port=server.port,
            env={**remote(lab.enroll(name)), "CAPTURE_GATE": str(gate.path)},
        )
        for name, gate in gates.items()
    }  # fmt: skip
    for name, gate in gates.items():
        gate.let(4)
        server.wait_for(f"report {name} 3")
    revoke = lab.python(
        str(Path(__file__).parents[1] / "cloud_server_coordinator.py"),
        "--state-dir", str(lab.folder / "state"), "--revoke", "bad",
    )  # fmt: skip
    revoke.wait(0)
    assert revoke.out == "bad is shut out; a running server closes its connection within 2 s"
    devices["bad"].wait_for("the token of bad was revoked")
    gates["good"].let(10)
    server.wait_for("report good 13")
    for gate in gates.values():
        gate.close()
    report = devices["good"].finish()
    assert report["items"]["captured"] == 14
    assert report["reconnects"] == 0
    bad = devices["bad"]
    bad.finish(None)
    cloud = server.stop()
    assert cloud["rejected"]["token"] >= 1


def test_the_enrolled_devices_are_listed(lab: Lab) -> None:
    for name in ("b-device", "a-device"):
        lab.enroll(name)
    listing = lab.python(
        str(Path(__file__).parents[1] / "cloud_server_coordinator.py"),
        "--state-dir", str(lab.folder / "state"), "--list-devices",
    )  # fmt: skip
    listing.wait(0)
    assert re.fullmatch(r"a-device  enrolled .+\nb-device  enrolled .+", listing.out)


def test_the_first_start_alone_prints_a_token(lab: Lab) -> None:
    """Not one after all devices were revoked; and not into systemd's journal, which others than root may read."""
    journal = (lab.folder / "journal").open("w")
    found = os.fstat(journal.fileno())
    as_service = subprocess.Popen(
        [sys.executable, str(ROOT / "cloud_server_coordinator.py"), "--host", "127.0.0.1", "--port", "0", "--app",
         lab.app("counter"), "--state-dir", str(lab.folder / "state"), "--results", "none"],
        env=lab.env | {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}, stdout=journal, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert as_service.stderr is not None
    with journal, as_service.stderr as lines:
        assert lines.readline().startswith(b"listening")
        as_service.send_signal(signal.SIGINT)
        assert as_service.wait(PATIENCE_S) == 0
    assert (lab.folder / "journal").read_text() == ""
    first = lab.server("counter")
    first.wait_for("^export OFFLOAD_TOKEN='offload1_")
    revoking = lab.python(
        str(ROOT / "cloud_server_coordinator.py"), "--state-dir", str(lab.folder / "state"), "--revoke", "device-1"
    )
    revoking.wait(0)
    first.stop()
    second = lab.server("counter")
    second.stop()
    assert second.out == ""


def test_a_rebuilt_server_is_not_trusted_by_a_running_device(lab: Lab) -> None:
    """Another key on the same port: the device spools and says so, and sends its secret to nobody."""
    server = lab.server("counter", env={"LOUD": "1"})
    gate = lab.gate("capture")
    token = lab.enroll("device")
    device = lab.device(
        "counter", "2", "--drain", "0.1", port=server.port, env={**remote(token), "CAPTURE_GATE": str(gate.path)}
    )
    gate.let(3)
    server.wait_for("report device 1")
    server.kill()
    shutil.rmtree(lab.folder / "state")
    second = lab.server("counter", port=server.port)
    device.wait_for("has another certificate than the token names")
    second.wait_for("left before it introduced itself; does its token name another certificate")
    gate.close()
    device.finish(None)
    assert second.stop()["sessions"] == []


def test_no_tls_and_tls_do_not_meet(lab: Lab) -> None:
    """Each sees at once that the other speaks something else, says so, and goes on waiting."""
    plain = lab.server("counter", "--no-tls")
    token = lab.enroll("device")
    secure_device = lab.device("counter", "2", port=plain.port, env=remote(token))
    secure_device.wait_for("no connection to 127.0.0.1:.*: no TLS connection: the peer sent something else than TLS")
    secure_device.kill()
    plain.wait_for("connection from 127.0.0.1 refused: ")
    plain.stop()
    secure = lab.server("counter")
    plain_device = lab.device("counter", "2", "--no-tls", port=secure.port)
    plain_device.wait_for("no connection to 127.0.0.1:.*; if it runs with TLS, leave out --no-tls here; trying again")
    plain_device.kill()
    secure.wait_for("no TLS connection: the peer sent something else than TLS")
    socket.create_connection(("127.0.0.1", secure.port)).close()  # as the README looks whether the port is open
    secure.wait_for("no TLS connection: the peer ended it within the handshake")
    assert secure.stop()["sessions"] == []


def test_no_tls_is_for_loopback_only(lab: Lab) -> None:
    server = lab.python(
        str(Path(__file__).parents[1] / "cloud_server_coordinator.py"), "--no-tls", "--port", "0",
        "--app", lab.app("counter"), "--results", "none",
    )  # fmt: skip
    server.wait(2)
    assert "--no-tls is for measurements on one machine, and 0.0.0.0 is not a loopback address" in server.err
    device = lab.device("counter", "2", "--no-tls", "--host", "192.0.2.1")
    device.wait(2)
    assert "192.0.2.1 is not a loopback address" in device.err
