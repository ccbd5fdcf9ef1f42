import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from task_offload.errors import ProtocolError
from task_offload.wire.framing import (
    BEFORE_AUTHENTICATION,
    READ_AHEAD_BYTES,
    READ_AHEAD_OF_BODY_BYTES,
    FrameLimits,
    FrameReader,
)
from task_offload.wire.memory import MemoryPool
from task_offload.wire.messages import Kind, item_prefix
from tests.wire.samples import GOLDEN, HEADER_BYTES, PlainMemory, feed, header, messages, new_reader

MESSAGES = {name: message for name, (message, _) in GOLDEN.items()}
MORE = MESSAGES["item"] + MESSAGES["ping"] + MESSAGES["item"]


def item(head_bytes: int, body_bytes: int, fill: int = 7) -> bytes:
    return item_prefix(1, 0, 1, 0, head_bytes, body_bytes) + bytes([fill]) * head_bytes + bytes([fill + 1]) * body_bytes


def flat(frames):
    return [(frame.kind, bytes(frame.head), bytes(frame.body or b"")) for frame in frames]


def cut(data):
    """The frames of whole messages, cut here by hand."""
    found = []
    while data:
        head_bytes = int.from_bytes(data[4:8], "little")
        end = HEADER_BYTES + head_bytes + int.from_bytes(data[8:16], "little")
        assert end <= len(data)
        found.append(
            (Kind(data[0]), data[HEADER_BYTES : HEADER_BYTES + head_bytes], data[HEADER_BYTES + head_bytes : end])
        )
        data = data[end:]
    return found


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_whole_byte_by_byte_and_with_more_behind_it(name):
    message = MESSAGES[name]
    assert flat(feed(new_reader(), message)) == cut(message)
    assert flat(feed(new_reader(), message, [1] * len(message))) == cut(message)
    assert flat(feed(new_reader(), message + MORE)) == cut(message + MORE)
    assert flat(feed(new_reader(), message + MORE, [1] * len(message + MORE))) == cut(message + MORE)


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_in_two_pieces_wherever_it_is_cut(name):
    message = MESSAGES[name]
    for size in range(1, len(message)):
        assert flat(feed(new_reader(), message, [size])) == cut(message)


@given(st.lists(messages, max_size=8), st.lists(st.integers(1, 2000), max_size=60))
def test_frames_come_whole_however_the_stream_is_split(sent, sizes):
    stream = b"".join(sent)
    assert flat(feed(new_reader(), stream, sizes)) == cut(stream)


@given(
    st.lists(st.tuples(st.integers(0, 200_000), st.integers(0, 100_000)), min_size=1, max_size=5),
    st.lists(st.sampled_from([1, 15, 16, 17, 4096, 65535, 65536, 65537, 150_000]), max_size=40),
)
def test_long_heads_and_bodies_come_whole_however_the_stream_is_split(lengths, sizes):
    stream = b"".join(item(head_bytes, body_bytes, n) for n, (head_bytes, body_bytes) in enumerate(lengths))
    assert flat(feed(new_reader(), stream, sizes)) == cut(stream)


def test_what_is_left_of_a_body_of_which_a_part_has_come():
    reader, message = new_reader(), item(10, 100)
    begin = len(message) - 100
    assert reader.body_left_bytes == 0
    assert feed(reader, message[:begin]) == []
    assert reader.body_left_bytes == 100
    assert feed(reader, message[begin:-1]) == []
    assert reader.body_left_bytes == 1
    assert len(feed(reader, message[-1:])) == 1
    assert reader.body_left_bytes == 0


# --- copies -------------------------------------------------------------------------------------------------------


def test_a_large_body_is_received_where_it_stays():
    reader, message = FrameReader(MemoryPool(1 << 20), FrameLimits()), item(10, 400_000)
    feed(reader, MESSAGES["item"])  # an item has come before, so little is read ahead
    buffer = reader.buffer()
    assert len(buffer) == READ_AHEAD_OF_BODY_BYTES
    assert feed(reader, message, [len(buffer)])
    reader = FrameReader(MemoryPool(1 << 20), FrameLimits())
    feed(reader, MESSAGES["item"])
    assert feed(reader, message[:READ_AHEAD_OF_BODY_BYTES]) == []
    rest = reader.buffer()
    rest_bytes = len(message) - READ_AHEAD_OF_BODY_BYTES
    assert len(rest) == rest_bytes + READ_AHEAD_OF_BODY_BYTES
    rest[:rest_bytes] = message[READ_AHEAD_OF_BODY_BYTES:]
    reader.received(rest_bytes)
    (frame,) = iter(reader.next, None)
    rest[0] = 99
    assert frame.body[-rest_bytes] == 99


def test_what_follows_a_body_may_come_with_its_rest():
    reader, message = FrameReader(MemoryPool(1 << 20), FrameLimits()), item(10, 400_000)
    assert feed(reader, message[:1000]) == []
    rest = message[1000:] + MESSAGES["ping"] + message[:100]
    assert len(reader.buffer()) > len(rest)
    reader.buffer()[: len(rest)] = rest
    reader.received(len(rest))
    assert flat(iter(reader.next, None)) == cut(message + MESSAGES["ping"])
    assert flat(feed(reader, message[100:])) == cut(message)


def test_the_memory_of_a_body_that_nobody_keeps_is_free_for_the_next():
    memory, message = MemoryPool(1 << 20), item(10, 400_000)
    reader = FrameReader(memory, FrameLimits())
    feed(reader, message[:1000])
    rest = message[1000:] + message[:1000]
    reader.buffer()[: len(rest)] = rest
    reader.received(len(rest))
    assert reader.next() is not None  # and is dropped
    assert memory.free_bytes > 400_000
    assert reader.next() is None  # the next body begins
    assert memory.free_bytes == 0


def test_after_messages_without_a_body_much_is_read_ahead():
    reader = new_reader()
    feed(reader, MESSAGES["item"])
    feed(reader, MESSAGES["ping"])
    assert len(reader.buffer()) == READ_AHEAD_BYTES


def test_a_long_head_is_read_at_once():
    reader, message = new_reader(), item(60_000, 1000)
    feed(reader, MESSAGES["item"])
    feed(reader, message[:READ_AHEAD_OF_BODY_BYTES])
    assert len(reader.buffer()) == HEADER_BYTES + 24 + 60_000 - READ_AHEAD_OF_BODY_BYTES


# --- limits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [0, 6, 15, 20, 31, 34, 255])
def test_an_unknown_kind_is_refused(kind):
    with pytest.raises(ProtocolError, match="something else"):
        feed(new_reader(), header(kind, 0, 0))


@pytest.mark.parametrize("reserved", [1, 0x100, 0x800000])
def test_reserved_bytes_are_zero(reserved):
    with pytest.raises(ProtocolError, match="something else"):
        feed(new_reader(), header(Kind.PING, 0, 0, reserved))


@pytest.mark.parametrize(
    "said", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00" + bytes(16), b"SSH-2.0-OpenSSH_9"]
)
def test_another_protocol_is_refused(said):
    with pytest.raises(ProtocolError):
        feed(new_reader(BEFORE_AUTHENTICATION), said)


LIMITS = FrameLimits(head_bytes=1000, body_bytes=2000)


@pytest.mark.parametrize(
    ("limits", "head_bytes", "body_bytes"),
    [
        (LIMITS, 1001, 0),
        (LIMITS, 0, 2001),
        (LIMITS, 2**32 - 1, 2**64 - 1),
        (FrameLimits(), 1024 * 1024 + 65, 0),
        (FrameLimits(), 0, 64 * 1024 * 1024 + 1),
        (BEFORE_AUTHENTICATION, 64 * 1024 + 1, 0),
        (BEFORE_AUTHENTICATION, 100, 1),
    ],
)
def test_a_declared_length_beyond_the_limit_is_refused_at_the_header(limits, head_bytes, body_bytes):
    memory = PlainMemory()
    reader = new_reader(limits, memory)
    with pytest.raises(ProtocolError, match="at most"):
        feed(reader, header(Kind.ITEM, head_bytes, body_bytes))
    assert memory.taken == []


def test_the_limits_themselves_are_allowed():
    message = header(Kind.ITEM, 1000, 2000) + bytes(3000)
    assert flat(feed(new_reader(LIMITS), message)) == [(Kind.ITEM, bytes(1000), bytes(2000))]


def test_limits_may_change_between_messages():
    reader = new_reader(BEFORE_AUTHENTICATION)
    feed(reader, MESSAGES["hello"])
    reader.limits = FrameLimits()
    assert len(feed(reader, MESSAGES["item"])) == 1


# --- memory -------------------------------------------------------------------------------------------------------


def peak_bytes(act) -> int:
    """The most memory that was taken at once."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        act()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def test_a_declared_length_alone_takes_no_memory():
    memory = PlainMemory()
    reader = new_reader(FrameLimits(), memory)
    begun = header(Kind.ITEM, 1024 * 1024, 64 * 1024 * 1024) + bytes(1000)
    assert peak_bytes(lambda: feed(reader, begun)) < 10_000
    assert memory.taken == []  # a body's memory is taken when its head is there


@pytest.mark.parametrize("came_bytes", [100_000, 300_000, 900_000])
def test_memory_for_a_head_grows_with_what_has_come(came_bytes):
    reader = new_reader()
    begun = header(Kind.ITEM, 1024 * 1024, 0) + bytes(came_bytes)
    assert peak_bytes(lambda: feed(reader, begun)) < 4 * came_bytes


def test_memory_of_a_long_head_is_given_back():
    reader = new_reader()
    assert peak_bytes(lambda: feed(reader, item(1_000_000, 0))) > 1_000_000
    tracemalloc.start()
    try:
        feed(reader, item(1_000_000, 0))
        assert tracemalloc.get_traced_memory()[0] < 2 * READ_AHEAD_BYTES
    finally:
        tracemalloc.stop()


def test_a_head_that_trickles_is_not_copied_again_with_every_byte():
    reader = new_reader()
    feed(reader, header(Kind.ITEM, 1024 * 1024, 0) + bytes(200_000))
    assert peak_bytes(lambda: feed(reader, bytes(2000), [1] * 2000)) < 100_000
