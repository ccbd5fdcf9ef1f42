"""The sessions of a run: what earlier runs left for the same chain and device first, its own last."""

from __future__ import annotations

from pathlib import Path

import pytest

from task_offload.config import DeviceConfig, parse_device
from task_offload.device_sessions import open_sessions, open_spool
from task_offload.task import Chain, load_app
from task_offload.transport.exchange import DeviceSession
from task_offload.wire.codec import Payload
from task_offload.wire.outbox import Entry
from tests.support.processes import APPS


@pytest.fixture
def chain(undo_imports: None) -> Chain:
    return load_app(str(APPS / "counter.py"))


def config(*options: str) -> DeviceConfig:
    return parse_device(["1", "--host", "127.0.0.1", *options], {})


def run(chain: Chain, folder: Path, items: int, *options: str, newest: bool = False) -> list[DeviceSession]:
    """One run that delivers nothing: its sessions, when it has put so many items into its own."""
    settings = config("--spool", str(folder), *options)
    spool = open_spool(settings)
    assert spool is not None
    sessions = open_sessions(settings, chain, spool, newest)
    for sequence in range(items):
        sessions[-1].outbox.add(Entry(sequence, 1, 1000.0, Payload(b"", (), 200)))
    for each in sessions:
        each.outbox.take_all()
    spool.close()
    return sessions


def test_without_a_spool_there_is_one_session_which_waits_in_memory(chain: Chain) -> None:
    settings = config("--spool-limit", "1k")
    assert open_spool(settings) is None
    [session] = open_sessions(settings, chain, None, newest=False)
    [other] = open_sessions(settings, chain, None, newest=False)
    assert len(session.session) == 16
    assert session.session != other.session
    session.outbox.add(Entry(0, 1, 1000.0, Payload(b"", (), 200)))
    assert not session.outbox.full
    session.outbox.add(Entry(1, 1, 1000.0, Payload(b"", (), 200)))
    assert session.outbox.full


def test_what_earlier_runs_left_goes_first_under_its_old_sessions(
    chain: Chain, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    [first] = run(chain, tmp_path, 3)
    found, second = run(chain, tmp_path, 4)
    assert (found.session, found.next_sequence, found.leaving) == (first.session, 3, True)
    assert (second.next_sequence, second.leaving) == (0, False)
    assert "3 items of earlier runs are delivered first" in caplog.text
    *earlier, last = run(chain, tmp_path, 0)
    assert {each.session: each.next_sequence for each in earlier} == {first.session: 3, second.session: 4}
    assert last.session not in {first.session, second.session}
    assert "7 items of earlier runs are delivered first" in caplog.text


def test_what_another_device_or_app_left_waits_for_it(
    chain: Chain, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    [first] = run(chain, tmp_path, 3, "--device-name", "one")
    assert len(run(chain, tmp_path, 0, "--device-name", "two")) == 1
    assert f"3 items of an earlier run wait in {tmp_path} for another app or device name: " in caplog.text
    assert len(run(load_app(str(APPS / "plane.py")), tmp_path, 0, "--device-name", "one")) == 1
    found, _ = run(chain, tmp_path, 0, "--device-name", "one")
    assert found.session == first.session


@pytest.mark.parametrize("newest", [True, False])
def test_what_finds_no_room_on_disk_is_dropped_or_waits(chain: Chain, tmp_path: Path, newest: bool) -> None:
    settings = config("--spool", str(tmp_path), "--spool-limit", "4k")
    spool = open_spool(settings)
    [session] = open_sessions(settings, chain, spool, newest)
    for sequence in range(100):
        session.outbox.add(Entry(sequence, 1, 1000.0, Payload(b"", (), 200)))
    left = session.outbox.take_all()
    assert spool is not None
    spool.close()
    assert left
    assert all((each.payload is None) == newest for each in left)
