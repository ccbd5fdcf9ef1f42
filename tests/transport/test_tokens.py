from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from task_offload.errors import ConfigError
from task_offload.transport.tokens import (
    NAME_LIMIT_BYTES,
    PREFIX,
    Token,
    check_device_name,
    format_token,
    parse_token,
    token_from_environment,
)

TOKEN = Token("garden pi", bytes(range(32)), bytes(range(100, 132)))


@pytest.mark.parametrize(
    "name", ["pi", "garden pi", "Küche-2", "カメラ", "a.b_c-d", "7", "x" * NAME_LIMIT_BYTES, "नमस्ते"]
)
def test_accepts_names(name: str) -> None:
    assert check_device_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "", " ", " a", "a ", "x" * (NAME_LIMIT_BYTES + 1), "ü" * (NAME_LIMIT_BYTES // 2 + 1),
        "a/b", "a+b", "a#", "$SYS", "-rf", ".", "..", ".hidden", "<b>", "a:b", "a\nb", "a\x00", "a\x1b[31m",
        "a\u202eb", "a\u200bb", "a\u00a0b", "\u0301a", "a\ud800",
    ],
)  # fmt: skip
def test_refuses_names(name: str) -> None:
    with pytest.raises(ConfigError, match="device name") as caught:
        check_device_name(name)
    assert str(caught.value).isprintable()


def test_the_same_name_from_two_keyboards_is_one_name() -> None:
    assert check_device_name("Ku\u0308che") == check_device_name("K\u00fcche") == "Küche"


@given(st.text())
def test_any_text_is_a_name_or_an_error(text: str) -> None:
    try:
        name = check_device_name(text)
    except ConfigError:
        return
    assert check_device_name(name) == name
    assert name.isprintable()
    assert not set(name) & set("/+#$\\\"'`<>:;|&")


def test_a_token_is_one_line_that_no_shell_or_url_changes() -> None:
    text = format_token(TOKEN)
    assert text.startswith(PREFIX)
    assert text.replace("_", "").replace("-", "").isalnum()
    assert text.isascii()
    assert parse_token(text) == TOKEN


def test_a_token_s_bytes_stay_as_they_are() -> None:
    """Tokens lie on devices for years: a later version must read this one."""
    text = (
        "offload1_CWdhcmRlbiBwaQABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4fZGVmZ2hp"
        "amtsbW5vcHFyc3R1dnd4eXp7fH1-f4CBgoMs_hg7"
    )
    assert format_token(TOKEN) == text
    assert parse_token(text) == TOKEN


@given(
    st.one_of(st.none(), st.text("abcü7", min_size=1, max_size=20)),
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=32, max_size=32),
)
def test_what_is_formatted_is_parsed(device: str | None, fingerprint: bytes, secret: bytes) -> None:
    token = Token(device, fingerprint, secret)
    assert parse_token(format_token(token)) == token


def test_a_truncated_paste_is_recognised_at_every_length() -> None:
    text = format_token(TOKEN)
    for length in range(1, len(text)):
        with pytest.raises(ConfigError, match="incomplete: paste the whole line again"):
            parse_token(text[:length])


def test_a_mistyped_character_is_recognised_everywhere() -> None:
    text = format_token(TOKEN)
    for at in range(len(PREFIX), len(text)):
        with pytest.raises(ConfigError):
            parse_token(text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :])


def test_line_breaks_of_a_terminal_do_no_harm() -> None:
    text = format_token(TOKEN)
    assert parse_token(f"  {text[:40]}\r\n  {text[40:80]}\n{text[80:]}\n") == TOKEN


@given(st.one_of(st.text(), st.text("abcXYZ019-_=").map(lambda text: PREFIX + text)))
def test_any_other_text_is_an_error_that_does_not_repeat_it(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_token(text)
    assert len(text) < 12 or text not in str(caught.value)


def test_lengths_inside_that_do_not_match_are_an_error() -> None:
    import base64
    import zlib

    for body in (bytes([200]) + bytes(68), bytes([1]) + b"\xff" + bytes(64), bytes([1]) + b"/" + bytes(64)):
        data = body + zlib.crc32(body).to_bytes(4, "little")
        with pytest.raises(ConfigError):
            parse_token(PREFIX + base64.urlsafe_b64encode(data).decode().rstrip("="))


def test_the_secret_is_not_shown() -> None:
    assert TOKEN.secret.hex() not in repr(TOKEN)
    assert repr(TOKEN.secret) not in repr(TOKEN)


def test_trusts_one_certificate_only() -> None:
    token = Token("pi", hashlib.sha256(b"certificate").digest(), bytes(32))
    assert token.trusts(b"certificate")
    assert not token.trusts(b"Certificate")
    assert not token.trusts(b"")
    assert not token.trusts(None)


def test_the_environment_gives_the_token_or_the_file_with_it(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(format_token(TOKEN) + "\n")
    file.chmod(0o600)
    other = Token("other", bytes(32), bytes(32))
    assert token_from_environment({}) is None
    assert token_from_environment({"OFFLOAD_TOKEN": "", "OFFLOAD_TOKEN_FILE": ""}) is None
    assert token_from_environment({"OFFLOAD_TOKEN": format_token(other)}) == other
    assert token_from_environment({"OFFLOAD_TOKEN_FILE": str(file)}) == TOKEN
    assert token_from_environment({"OFFLOAD_TOKEN": format_token(other), "OFFLOAD_TOKEN_FILE": str(file)}) == other


def test_a_token_file_that_everybody_can_read_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Some systems that hand secrets out make them so."""
    file = tmp_path / "token"
    file.write_text(format_token(TOKEN))
    for mode, lines in ((0o600, 0), (0o640, 0), (0o644, 1), (0o644, 1)):
        file.chmod(mode)
        assert token_from_environment({"OFFLOAD_TOKEN_FILE": str(file)}) == TOKEN
        assert len(caplog.records) == lines
    assert caplog.records[0].message.endswith(f"run  chmod 600 {file}")


def test_a_wrong_environment_is_named_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^OFFLOAD_TOKEN: the token is incomplete"):
        token_from_environment({"OFFLOAD_TOKEN": format_token(TOKEN)[:50]})
    with pytest.raises(ConfigError, match=r"^OFFLOAD_TOKEN_FILE .*missing: No such file or directory; name the file"):
        token_from_environment({"OFFLOAD_TOKEN_FILE": str(tmp_path / "missing")})
    (tmp_path / "photo").write_bytes(b"\xff\xd8" * 5000)
    with pytest.raises(ConfigError, match=r"^OFFLOAD_TOKEN_FILE .*photo: it is not text; name the file"):
        token_from_environment({"OFFLOAD_TOKEN_FILE": str(tmp_path / "photo")})
