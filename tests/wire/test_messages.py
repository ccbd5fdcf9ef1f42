import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from task_offload.errors import ProtocolError
from task_offload.wire.messages import (
    LONGEST_RETRY_S,
    MOST_IN_RANGE,
    MOST_REFUSAL_BYTES,
    MOST_SEQUENCE,
    MOST_TEXT_BYTES,
    VERSION,
    ChainSpec,
    EndingRange,
    Hello,
    Load,
    RefusalMessage,
    TaskBusy,
    TaskSpec,
    Totals,
    ack,
    check_ping,
    decode_bye,
    decode_totals,
)
from tests.wire.samples import (
    COSTS,
    DECODERS,
    GOLDEN,
    HEADER_BYTES,
    HELLO,
    LOAD,
    RANGE,
    TOTALS,
    WELCOME,
    objects,
    totals,
)


@pytest.mark.parametrize("name", GOLDEN)
def test_fixed_bytes(name):
    message, expected = GOLDEN[name]
    assert message.hex() == expected.replace(" ", "")


@pytest.mark.parametrize("name", DECODERS)
def test_fixed_bytes_decode(name):
    decode, expected = DECODERS[name]
    assert decode(bytes.fromhex(GOLDEN[name][1])[HEADER_BYTES:]) == expected


@given(objects)
def test_every_message_comes_back(message):
    assert type(message).decode(message.encode()[HEADER_BYTES:]) == message


@given(totals())
def test_books_come_back(books):
    assert decode_totals(ack(books)[HEADER_BYTES:]) == books


@pytest.mark.parametrize("name", DECODERS)
def test_a_message_of_another_length_is_refused(name):
    decode, _ = DECODERS[name]
    head = bytes.fromhex(GOLDEN[name][1])[HEADER_BYTES:]
    for end in range(len(head)):
        with pytest.raises(ProtocolError):
            decode(head[:end])
    for more in (b"\0", b"\1" * 100):
        with pytest.raises(ProtocolError, match="longer than its fields"):
            decode(head + more)


@given(st.sampled_from(sorted(DECODERS)), st.binary(max_size=300))
def test_arbitrary_bytes_are_decoded_or_refused(name, head):
    try:
        DECODERS[name][0](head)
    except ProtocolError:
        pass


@given(st.sampled_from(sorted(DECODERS)), st.data())
def test_one_changed_byte_is_decoded_or_refused(name, data):
    head = bytearray.fromhex(GOLDEN[name][1])[HEADER_BYTES:]
    head[data.draw(st.integers(0, len(head) - 1))] = data.draw(st.integers(0, 255))
    try:
        DECODERS[name][0](bytes(head))
    except ProtocolError:
        pass


def test_a_ping_has_nothing_in_it():
    check_ping(b"")
    with pytest.raises(ProtocolError):
        check_ping(b"\0")


# --- texts ------------------------------------------------------------------------------------------------------

TEXTS = {
    "hello": b"pi",
    "ack": b"overload",
    "welcome": b"zstd",
    "endings": b"get",
    "refusal": b"no",
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("bad", [b"\xff", b"\xc3", b"\xed\xa0\x80"], ids=["byte", "half", "surrogate"])
def test_a_text_that_is_not_utf8_is_refused(name, bad):
    head = bytes.fromhex(GOLDEN[name][1])[HEADER_BYTES:]
    text = TEXTS[name]
    with pytest.raises(ProtocolError, match=r"UTF-8|shorter"):
        DECODERS[name][0](head.replace(text, bad.ljust(len(text), b"a")[: len(text)]))


@pytest.mark.parametrize(
    ("name", "control"),
    [
        (name, control)
        for name in TEXTS
        for control in ("\n", "\0", "\x1b", "\x7f", "\x85", "\u2028")
        if len(control.encode()) <= len(TEXTS[name])
    ],
)
def test_a_text_that_would_forge_a_line_of_the_log_is_refused(name, control):
    head = bytes.fromhex(GOLDEN[name][1])[HEADER_BYTES:]
    text = TEXTS[name]
    forged = control.encode() + text[len(control.encode()) :]
    with pytest.raises(ProtocolError, match="control characters"):
        DECODERS[name][0](head.replace(text, forged))


def test_what_an_app_says_is_made_fit_to_travel():
    said = "line one\nline two\0 \udc80 \x1b[31m"
    assert EndingRange.decode(replace(RANGE, detail=said).encode()[HEADER_BYTES:]).detail == (
        "line one line two  ?  [31m"
    )
    assert RefusalMessage.decode(RefusalMessage(1, said).encode()[HEADER_BYTES:]).message == (
        "line one line two  ?  [31m"
    )


@pytest.mark.parametrize("before", range(4))
def test_a_text_is_cut_between_characters(before):
    said = "x" * before + "\U0001f3be" * 1000
    for message, most_bytes in (
        (EndingRange.decode(replace(RANGE, detail=said).encode()[HEADER_BYTES:]).detail, MOST_TEXT_BYTES),
        (RefusalMessage.decode(RefusalMessage(1, said).encode()[HEADER_BYTES:]).message, MOST_REFUSAL_BYTES),
    ):
        assert said.startswith(message)
        assert most_bytes - 4 < len(message.encode()) <= most_bytes


def test_longer_texts_than_allowed_are_refused():
    head = RANGE.encode()[HEADER_BYTES:-3]
    too_long = head[:14] + struct.pack("<H", MOST_TEXT_BYTES + 1) + head[16:] + b"x" * (MOST_TEXT_BYTES + 1)
    with pytest.raises(ProtocolError, match="at most 255"):
        EndingRange.decode(too_long)
    with pytest.raises(ProtocolError, match="at most 2048"):
        RefusalMessage.decode(struct.pack("<HfH", 1, 0.0, MOST_REFUSAL_BYTES + 1) + b"x" * (MOST_REFUSAL_BYTES + 1))
    named = HELLO.encode()[HEADER_BYTES:]
    with pytest.raises(ProtocolError, match="at most 64"):
        Hello.decode(named[:96] + struct.pack("<H", 65) + b"x" * 65 + named[100:])


# --- fields that make no sense ------------------------------------------------------------------------------------


def test_another_magic_is_another_protocol():
    with pytest.raises(ProtocolError, match="does not speak"):
        Hello.decode(b"HTTP" + HELLO.encode()[HEADER_BYTES + 4 :])


@pytest.mark.parametrize("version", [0, VERSION + 1, 65535])
@pytest.mark.parametrize("rest", [b"", b"\xff" * 50, b"\xff" * 200])
def test_of_a_hello_in_another_version_only_the_version_is_read(version, rest):
    hello = Hello.decode(HELLO.encode()[HEADER_BYTES : HEADER_BYTES + 4] + struct.pack("<H", version) + rest)
    assert (hello.version, hello.device, hello.chain) == (version, "", ChainSpec(()))


@pytest.mark.parametrize("contract", [3, 7, 8, 255])
def test_a_contract_of_another_version_is_refused(contract):
    head = bytearray(HELLO.encode()[HEADER_BYTES:])
    head[101] = contract
    with pytest.raises(ProtocolError, match="contract"):
        Hello.decode(bytes(head))


@pytest.mark.parametrize(
    "message",
    [
        replace(HELLO, device=""),
        replace(HELLO, acked=MOST_SEQUENCE + 1),
        replace(WELCOME, heartbeat_s=0.0),
        replace(WELCOME, heartbeat_s=float("nan")),
        replace(WELCOME, heartbeat_s=8.0),
        replace(WELCOME, silence_s=3600.0),
        replace(WELCOME, silence_s=float("inf")),
        replace(WELCOME, message_bytes=0),
        replace(WELCOME, unacked_bytes=0),
        replace(WELCOME, unacked_items=0),
        replace(WELCOME, workers=float("nan")),
        replace(WELCOME, main_share=1.5),
        replace(WELCOME, version=VERSION + 1),
        replace(WELCOME, totals=TOTALS._replace(next_sequence=259)),
        replace(RANGE, count=0),
        replace(RANGE, count=MOST_IN_RANGE + 1),
        replace(RANGE, first=MOST_SEQUENCE - 2),
        replace(RANGE, ending=0),
        replace(RANGE, ending=3),
        replace(RANGE, newest_age_us=RANGE.oldest_age_us + 1),
        replace(COSTS, workers=float("inf")),
        replace(COSTS, workers=-1.0),
        replace(COSTS, main_share=float("nan")),
        replace(COSTS, tasks=(TaskBusy(1, 3, 4, 0),)),
        replace(LOAD, process_cpu=float("nan")),
        replace(LOAD, machine_cpu=-0.5),
        replace(LOAD, memory=float("inf")),
        replace(LOAD, temperature_c=float("-inf")),
        RefusalMessage(1, "", -1.0),
        RefusalMessage(1, "", float("nan")),
        RefusalMessage(1, "", 2 * LONGEST_RETRY_S),
    ],
    ids=lambda message: type(message).__name__,
)
def test_fields_that_make_no_sense_are_refused(message):
    with pytest.raises(ProtocolError):
        type(message).decode(message.encode()[HEADER_BYTES:])


def test_no_sensor_is_a_temperature():
    load = Load.decode(replace(LOAD, temperature_c=float("nan")).encode()[HEADER_BYTES:])
    assert load.temperature_c != load.temperature_c


@pytest.mark.parametrize("books", [Totals(10, 6, 5), Totals(10, 0, 0, {"overload": 11}), Totals(MOST_SEQUENCE + 1)])
def test_books_that_do_not_add_up_are_refused(books):
    with pytest.raises(ProtocolError, match=r"add up|beyond"):
        decode_totals(ack(books)[HEADER_BYTES:])


def test_drops_that_do_not_add_up_are_refused():
    head = bytearray(ack(TOTALS)[HEADER_BYTES:])
    head[24:32] = struct.pack("<Q", 11)
    with pytest.raises(ProtocolError, match="add up"):
        decode_totals(bytes(head))


def test_a_bye_beyond_the_last_sequence_is_refused():
    assert decode_bye(struct.pack("<Q", MOST_SEQUENCE)) == MOST_SEQUENCE
    with pytest.raises(ProtocolError, match="beyond"):
        decode_bye(struct.pack("<Q", MOST_SEQUENCE + 1))


# --- chains -------------------------------------------------------------------------------------------------------

CHAIN = ChainSpec((TaskSpec("a"), TaskSpec("b", 2, True), TaskSpec("c")), ("Circle",), bytes(32))


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (replace(CHAIN, source_digest=bytes([1]) * 32), None),
        (replace(CHAIN, tasks=CHAIN.tasks[:2]), "3 tasks, the device's has 2"),
        (replace(CHAIN, tasks=(*CHAIN.tasks[:2], TaskSpec("d"))), "task 3 is c in the cloud and d on the device"),
        (replace(CHAIN, tasks=(TaskSpec("a", 1), *CHAIN.tasks[1:])), "task 1, a, has another contract"),
        (replace(CHAIN, tasks=(CHAIN.tasks[0], TaskSpec("b", 2), CHAIN.tasks[2])), "task 2, b, has another contract"),
        (replace(CHAIN, payload_types=()), "payload_types differ"),
    ],
)
def test_what_two_chains_differ_in_is_said(other, said):
    difference = CHAIN.difference(other)
    assert difference is None if said is None else said in difference
