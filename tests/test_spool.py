"""The device's spool: what was appended comes back, in order and unchanged, after restarts, crashes and damage."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from task_offload.errors import ConfigError, StoreError
from task_offload.spool import SEGMENT_BYTES, DiskSpool, Spooled, SpooledSession, SpoolFull

SESSION = "0123456789abcdef" * 2
OTHER = "fedcba9876543210" * 2
LIMIT = 64 * SEGMENT_BYTES
SMALL = 16 * 400  # a limit whose segments hold a few messages of a hundred bytes
PROJECT = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def spool(folder: Path) -> Iterator[DiskSpool]:
    with DiskSpool(folder, LIMIT) as spool:
        spool.begin(SESSION, b"meta")
        yield spool


def read(spool: DiskSpool, session: str = SESSION, sequence: int = 0) -> list[Spooled]:
    with spool.reader(session, sequence) as reader:
        return list(iter(reader.next, None))


def sequences(spool: DiskSpool, session: str = SESSION, sequence: int = 0) -> list[int]:
    return [each.sequence for each in read(spool, session, sequence)]


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.spool"))


def segments_of(folder: Path, messages: int) -> list[Path]:
    """Fills a spool with messages of a hundred bytes in small segments, and closes it."""
    with DiskSpool(folder, SMALL) as spool:
        spool.begin(SESSION, b"meta")
        for sequence in range(messages):
            spool.append(SESSION, sequence, [sequence.to_bytes(4, "little") * 25])
    return files(folder)


def damages(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was said of damaged places."""
    return [each.message for each in caplog.records if "is damaged" in each.message]


def fill(spool: DiskSpool, size_bytes: int) -> tuple[int, str]:
    """Appends until the spool is full. Returns the sequence that did not fit, and what the spool said."""
    for sequence in range(1000):
        try:
            spool.append(SESSION, sequence, [bytes(size_bytes)])
        except SpoolFull as full:
            return sequence, str(full)
    raise AssertionError("the spool never filled up")


def test_messages_come_back_joined_and_in_order(spool: DiskSpool) -> None:
    spool.append(SESSION, 3, [b"head", bytearray(b"buffer"), memoryview(b""), memoryview(b"end")])
    spool.append(SESSION, 4, [b"drops"], items=10)
    spool.append(SESSION, 14, [])
    assert read(spool) == [
        Spooled(3, 1, bytearray(b"headbufferend")), Spooled(4, 10, bytearray(b"drops")), Spooled(14, 1, bytearray()),
    ]  # fmt: skip
    assert spool.items == 12
    assert spool.sessions() == [SpooledSession(SESSION, b"meta", 12, 3, 15)]


def test_arrays_of_any_shape_are_written_as_they_lie(spool: DiskSpool) -> None:
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(24, dtype=numpy.uint16).reshape(2, 3, 4)
    spool.append(SESSION, 0, [memoryview(array), memoryview(numpy.zeros((0, 4)))])
    assert read(spool)[0].message == array.tobytes()


def test_a_message_of_very_many_parts(spool: DiskSpool) -> None:
    spool.append(SESSION, 0, [bytes([i % 256]) for i in range(5000)])
    assert read(spool)[0].message == bytes(i % 256 for i in range(5000))


def test_a_message_longer_than_a_segment(spool: DiskSpool) -> None:
    long = os.urandom(SEGMENT_BYTES + 1000)
    for sequence in range(3):
        spool.append(SESSION, sequence, [long])
    assert [each.message == long for each in read(spool)] == [True] * 3
    spool.forget(SESSION, 2)
    assert len(long) < spool.size_bytes < 2 * len(long)


def test_the_next_run_finds_what_waits_oldest_session_first(folder: Path) -> None:
    with DiskSpool(folder, LIMIT) as spool:
        spool.begin(OTHER, b"older")
        spool.append(OTHER, 7, [b"a"])
        spool.begin(SESSION, b"newer")
        spool.append(SESSION, 0, [b"b"], items=2)
        spool.append(OTHER, 8, [b"c"])
        assert [each.session for each in spool.sessions()] == [OTHER, SESSION]
    with DiskSpool(folder, LIMIT) as spool:
        assert spool.sessions() == [
            SpooledSession(OTHER, b"older", 2, 7, 9), SpooledSession(SESSION, b"newer", 2, 0, 2),
        ]  # fmt: skip
        assert read(spool, OTHER) == [Spooled(7, 1, bytearray(b"a")), Spooled(8, 1, bytearray(b"c"))]
        assert read(spool, SESSION) == [Spooled(0, 2, bytearray(b"b"))]
        spool.forget(OTHER, 9)
        spool.forget(SESSION, 2)
        assert spool.sessions() == []
        assert (spool.items, spool.size_bytes, files(folder)) == (0, 0, [])


def test_a_found_session_may_be_continued(folder: Path) -> None:
    segments_of(folder, 5)
    with DiskSpool(folder, LIMIT) as spool:
        spool.begin(SESSION, b"ignored: it has its meta")
        with pytest.raises(ValueError, match="sequence 4 comes after 4"):
            spool.append(SESSION, 4, [b"again"])
        spool.append(SESSION, 5, [b"more"])
        assert sequences(spool) == [0, 1, 2, 3, 4, 5]
        assert spool.sessions() == [SpooledSession(SESSION, b"meta", 6, 0, 6)]


def test_space_comes_back_in_whole_segments(folder: Path) -> None:
    with DiskSpool(folder, SMALL) as spool:
        spool.begin(SESSION, b"meta")
        for sequence in range(20):
            spool.append(SESSION, sequence, [bytes(100)])
        assert spool.size_bytes == sum(path.stat().st_size for path in files(folder))
        count = len(files(folder))
        for watermark in range(21):
            spool.forget(SESSION, watermark)
            assert spool.items == 20 - watermark
            assert spool.size_bytes == sum(path.stat().st_size for path in files(folder))
            assert sequences(spool, sequence=watermark) == list(range(watermark, 20))
        assert count >= 5
        assert files(folder) == []
        spool.append(SESSION, 20, [b"the session goes on"])
        assert sequences(spool) == [20]


def test_a_watermark_within_a_run_keeps_the_run(spool: DiskSpool) -> None:
    spool.append(SESSION, 0, [b"drops"], items=10)
    spool.append(SESSION, 10, [b"item"])
    spool.forget(SESSION, 5)
    assert spool.items == 11
    assert sequences(spool, sequence=5) == [0, 10]
    assert sequences(spool, sequence=10) == [10]


def test_a_full_spool_says_so_and_takes_messages_again_when_there_is_room(folder: Path) -> None:
    with DiskSpool(folder, SMALL) as spool:
        spool.begin(SESSION, b"")
        sequence, reason = fill(spool, 100)
        assert reason == f"spool {folder}: its limit of 6400 bytes is reached"
        assert SMALL - 200 < spool.size_bytes <= SMALL
        assert sequences(spool) == list(range(sequence))
        with pytest.raises(SpoolFull):
            spool.append(SESSION, sequence, [bytes(100)])
        spool.forget(SESSION, 3)
        spool.append(SESSION, sequence, [bytes(100)])
        assert sequences(spool, sequence=3) == list(range(3, sequence + 1))


def test_a_message_that_never_fits(spool: DiskSpool) -> None:
    with pytest.raises(SpoolFull):
        spool.append(SESSION, 0, [bytes(1024 * 1024)] * 257)
    assert spool.items == 0


def test_a_full_disk_keeps_nothing_of_the_message(spool: DiskSpool) -> None:
    resource = pytest.importorskip("resource")
    spool.append(SESSION, 0, [b"first"])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (spool.size_bytes + 500, before[1]))
    try:
        with pytest.raises(StoreError, match="File too large; check the disk"):
            spool.append(SESSION, 1, [bytes(100), bytes(1000)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    spool.append(SESSION, 1, [b"second"])
    assert [each.message for each in read(spool)] == [b"first", b"second"]


def test_a_small_disk_is_told_and_used_again(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    try:
        with DiskSpool(disk / "spool", 16 * 10_000) as spool:
            spool.begin(SESSION, b"meta")
            sequence, reason = fill(spool, 3000)
            assert reason == f"spool {disk / 'spool'}: its disk is full; make room"
            assert 0 < sequence < 30
            assert sequences(spool) == list(range(sequence))
            spool.forget(SESSION, 5)
            spool.append(SESSION, sequence, [b"fits"])
            assert sequences(spool, sequence=5) == list(range(5, sequence + 1))
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_second_process_on_the_folder_is_refused(spool: DiskSpool, folder: Path) -> None:
    with pytest.raises(ConfigError, match="another device process uses it"):
        DiskSpool(folder, LIMIT)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="name a folder that you can write"):
        DiskSpool(tmp_path / "file" / "spool", LIMIT)


def test_payloads_are_for_their_owner_only(spool: DiskSpool, folder: Path) -> None:
    spool.append(SESSION, 0, [b"a picture of your living room"])
    assert [path.stat().st_mode & 0o077 for path in [folder, *folder.iterdir()]] == [0, 0, 0]


@pytest.mark.parametrize(("session", "meta"), [("../../etc/passwd", b""), ("AB" * 16, b""), (SESSION, bytes(65537))])
def test_what_is_no_session_is_refused(spool: DiskSpool, session: str, meta: bytes) -> None:
    with pytest.raises(ValueError, match="32 hexadecimal digits"):
        spool.begin(session, meta)


def test_files_of_others_are_left_alone(folder: Path) -> None:
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    (folder / f"1-{SESSION}.spool").write_text("not one of ours")
    with DiskSpool(folder, LIMIT) as spool:
        assert spool.sessions() == []
    assert sorted(path.name for path in folder.iterdir()) == [f"1-{SESSION}.spool", "lock", "notes.txt"]


def test_a_torn_last_message_is_cut_off_wherever_it_was_torn(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = segments_of(folder, 2)[-1]
    whole = path.read_bytes()
    second = whole.rindex((1).to_bytes(4, "little") * 25) - 28
    for kept in range(second + 1, len(whole)):
        path.write_bytes(whole[:kept])
        with DiskSpool(folder, SMALL) as spool:
            assert sequences(spool) == [0]
        assert path.stat().st_size == second
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]


def test_a_segment_that_was_torn_as_it_began_is_no_damage(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, path = segments_of(folder, 4)
    whole = path.read_bytes()
    for content in [*(whole[:kept] for kept in range(52)), bytes(len(whole))]:
        path.write_bytes(content)
        with DiskSpool(folder, SMALL) as spool:
            assert sequences(spool) == [0, 1]
        assert files(folder) == [first]
    assert not damages(caplog)


def test_a_last_message_of_zeros_is_torn_too(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = segments_of(folder, 3)[-1]
    whole = path.read_bytes()
    path.write_bytes(whole[:-128] + bytes(128))
    with DiskSpool(folder, SMALL) as spool:
        assert sequences(spool) == [0, 1]
    assert not damages(caplog)


def test_a_flipped_byte_costs_its_message_or_the_rest_of_its_segment(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    segments = segments_of(folder, 6)
    assert len(segments) == 3
    contents = [path.read_bytes() for path in segments]
    for position in range(0, len(contents[1]), 3):
        for path, content in zip(segments, contents, strict=True):
            path.write_bytes(content)
        changed = bytearray(contents[1])
        changed[position] ^= 0x10
        segments[1].write_bytes(changed)
        with DiskSpool(folder, SMALL) as spool:
            found = read(spool)
        assert len(damages(caplog)) == 1
        caplog.clear()
        for each in found:
            assert each.message == each.sequence.to_bytes(4, "little") * 25
        assert [each.sequence for each in found if each.sequence not in (2, 3)] == [0, 1, 4, 5]


def test_damage_is_logged_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = segments_of(folder, 6)[1]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with DiskSpool(folder, SMALL) as spool:
        assert sequences(spool) == sequences(spool) == [0, 1, 2, 4, 5]
        spool.forget(SESSION, 6)
        assert (spool.items, spool.size_bytes) == (0, 0)
    assert len(damages(caplog)) == 1


def test_a_segment_that_somebody_removed(folder: Path) -> None:
    segments = segments_of(folder, 6)
    with DiskSpool(folder, SMALL) as spool:
        segments[1].unlink()
        assert sequences(spool) == [0, 1, 4, 5]
        spool.forget(SESSION, 6)
        assert spool.items == 0


def test_a_segment_under_another_name_is_no_segment(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    segments = segments_of(folder, 6)
    segments[0].rename(folder / f"000000000099-{SESSION}.spool")
    with DiskSpool(folder, SMALL) as spool:
        assert sequences(spool) == [2, 3, 4, 5]
    assert len(damages(caplog)) == 1


def test_a_reader_sees_what_is_appended_and_forgotten_meanwhile(folder: Path) -> None:
    with DiskSpool(folder, SMALL) as spool:
        spool.begin(SESSION, b"meta")
        with spool.reader(SESSION) as reader:
            assert reader.next() is None
            for sequence in range(10):
                spool.append(SESSION, sequence, [bytes(100)])
            assert [spooled.sequence for spooled in (reader.next(), reader.next()) if spooled] == [0, 1]
            spool.forget(SESSION, 7)
            later = reader.next()
            assert later is not None
            assert 2 <= later.sequence <= 7
            assert [each.sequence for each in iter(reader.next, None)][-1] == 9
            spool.forget(SESSION, 10)
            assert reader.next() is None
            spool.append(SESSION, 10, [b"x"])
            assert reader.next() == Spooled(10, 1, bytearray(b"x"))


def test_one_thread_appends_while_another_reads_and_forgets(folder: Path) -> None:
    count = 2000
    with DiskSpool(folder, SMALL) as spool:
        spool.begin(SESSION, b"meta")
        errors: list[BaseException] = []

        def append() -> None:
            try:
                for sequence in range(count):
                    while True:
                        try:
                            spool.append(SESSION, sequence, [sequence.to_bytes(4, "little") * 10])
                            break
                        except SpoolFull:
                            os.sched_yield()
            except BaseException as error:
                errors.append(error)

        appender = threading.Thread(target=append)
        appender.start()
        expected = 0
        with spool.reader(SESSION) as reader:
            while expected < count and not errors:
                spooled = reader.next()
                if spooled is None:
                    os.sched_yield()
                    continue
                assert spooled == Spooled(expected, 1, bytearray(expected.to_bytes(4, "little") * 10))
                expected += 1
                spool.forget(SESSION, expected)
        appender.join()
        spool.forget(SESSION, expected)
        assert not errors
        assert (spool.items, spool.size_bytes) == (0, 0)


def test_syncing_covers_the_tail_the_ended_files_and_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr("task_offload.spool.SYNC_INTERVAL_S", 3600.0)
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(Path(f"/proc/self/fd/{file}").readlink().name))
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("file names of descriptors need /proc")
    with DiskSpool(folder, SMALL) as spool:
        spool.begin(SESSION, b"meta")
        for sequence in range(6):
            spool.append(SESSION, sequence, [bytes(100)])
        assert synced == []
        spool.sync()
        assert sorted(synced) == sorted([*(path.name for path in files(folder)), folder.name])
        spool.sync()
        assert len(synced) == 4


def test_a_disk_that_cannot_sync_is_told_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("task_offload.spool.SYNC_INTERVAL_S", 3600.0)
    monkeypatch.setattr(os, "fsync", fail)
    with DiskSpool(folder, LIMIT) as spool:
        spool.begin(SESSION, b"meta")
        for sequence in range(3):
            spool.append(SESSION, sequence, [b"x"])
            spool.sync()
        assert sequences(spool) == [0, 1, 2]
    assert caplog.text.count("Input/output error") == 1


def test_without_a_descriptor_to_spare_it_is_synced_when_there_is_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: int) -> int:
        raise OSError(24, "Too many open files")

    synced: list[int] = []
    monkeypatch.setattr("task_offload.spool.SYNC_INTERVAL_S", 3600.0)
    monkeypatch.setattr(os, "fsync", synced.append)
    with DiskSpool(folder, LIMIT) as spool:
        spool.begin(SESSION, b"meta")
        spool.append(SESSION, 0, [b"x"])
        with monkeypatch.context() as without:
            without.setattr(os, "dup", fail)
            spool.sync()
        assert "Too many open files" in caplog.text
        assert synced == []
        spool.sync()
        assert synced


def test_a_disk_that_cannot_be_read_ends_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: int) -> bytes:
        raise OSError(5, "Input/output error")

    with DiskSpool(folder, LIMIT) as spool:
        spool.begin(SESSION, b"meta")
        for sequence in range(3):
            spool.append(SESSION, sequence, [b"x"])
    with DiskSpool(folder, LIMIT) as spool:
        monkeypatch.setattr(os, "pread", fail)
        spool.forget(SESSION, 1)
    assert "Input/output error" in caplog.text


WRITER = """
import random, sys
from pathlib import Path
from task_offload.spool import DiskSpool

session, seed = "ab" * 16, int(sys.argv[2])
chance = random.Random(seed)
with DiskSpool(Path(sys.argv[1]), 1 << 30) as spool:
    spool.begin(session, b"meta")
    found = spool.sessions()
    sequence = found[0].end if found else 0
    while True:
        spool.append(session, sequence, [sequence.to_bytes(8, "little"), bytes(chance.randrange(200_000))])
        print(sequence, flush=True)
        sequence += 1
"""


@pytest.mark.parametrize("seed", range(3))
def test_what_was_appended_is_there_whenever_the_process_dies(
    folder: Path, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    chance = random.Random(seed)
    reported = -1
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder), str(seed)], cwd=PROJECT, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        with process, process.stdout as lines:
            for _ in range(chance.randrange(1, 60)):
                reported = int(lines.readline())
            process.send_signal(signal.SIGKILL)
            reported = max([reported, *(int(line) for line in lines if line.endswith("\n"))])
        assert process.returncode == -signal.SIGKILL
        with DiskSpool(folder, 1 << 30) as spool:
            found = read(spool, "ab" * 16)
        assert not damages(caplog)
        assert [each.sequence for each in found] == list(range(len(found)))
        assert len(found) in (reported + 1, reported + 2)
        for each in found:
            assert each.message[:8] == each.sequence.to_bytes(8, "little")
            assert not any(each.message[8:])


class SpoolMachine(RuleBasedStateMachine):
    """Any order of appending, forgetting, restarting and damage: never a wrong message, never one out of order."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(os, "fsync", lambda _: None)  # no power is cut here, and thousands of files are opened
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name)
        self.sent: dict[str, dict[int, tuple[bytes, int]]] = {SESSION: {}, OTHER: {}}
        self.end = dict.fromkeys(self.sent, 0)
        self.watermark = dict.fromkeys(self.sent, 0)
        self.damaged = False
        self.open()

    def open(self) -> None:
        self.spool = DiskSpool(self.path, SMALL)
        for session in self.sent:
            self.spool.begin(session, session.encode())

    def teardown(self) -> None:
        self.spool.close()
        self.folder.cleanup()
        self.patch.undo()

    @rule(
        session=st.sampled_from([SESSION, OTHER]),
        message=st.binary(max_size=200),
        gap=st.integers(0, 3),
        items=st.integers(1, 4),
    )
    def append(self, session: str, message: bytes, gap: int, items: int) -> None:
        sequence = self.end[session] + gap
        try:
            self.spool.append(session, sequence, [message[:10], message[10:]], items)
        except SpoolFull:
            return
        self.end[session] = sequence + items
        self.sent[session][sequence] = message, sequence + items

    @rule(session=st.sampled_from([SESSION, OTHER]), back=st.integers(0, 12))
    def forget(self, session: str, back: int) -> None:
        self.watermark[session] = max(self.watermark[session], self.end[session] - back)
        self.spool.forget(session, self.watermark[session])

    @rule()
    def restart(self) -> None:
        self.spool.close()
        self.open()

    @precondition(lambda self: files(self.path))
    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        self.spool.close()
        path = data.draw(st.sampled_from(files(self.path)))
        content = bytearray(path.read_bytes())
        if data.draw(st.booleans()):
            del content[data.draw(st.integers(0, len(content))) :]
        elif content:
            content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        path.write_bytes(content)
        self.damaged = True
        self.open()

    @invariant()
    def what_is_read_was_sent(self) -> None:
        for session, sent in self.sent.items():
            found = read(self.spool, session, self.watermark[session])
            order = [each.sequence for each in found]
            assert order == sorted(set(order))
            assert [(each.message, each.sequence + each.items) for each in found] == [sent[each] for each in order]
            if not self.damaged:
                assert order == [each for each in sent if sent[each][1] > self.watermark[session]]

    @invariant()
    def sizes_are_those_of_the_files(self) -> None:
        assert self.spool.size_bytes == sum(path.stat().st_size for path in files(self.path)) <= SMALL


TestSpoolMachine: Any = SpoolMachine.TestCase
TestSpoolMachine.settings = settings(max_examples=50, stateful_step_count=25, deadline=None)
