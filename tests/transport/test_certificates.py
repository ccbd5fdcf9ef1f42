from __future__ import annotations

import ssl
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import pytest

from task_offload.errors import ConfigError
from task_offload.transport.certificates import (
    FILE_NAME,
    Certificate,
    client_context,
    has_aes_instructions,
    load_or_make_certificate,
    server_context,
)
from task_offload.transport.tokens import Token, fingerprint

x509 = pytest.importorskip("cryptography.x509")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return load_or_make_certificate(tmp_path_factory.mktemp("cloud") / "state")


def connect(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """A TLS connection in memory, its handshake done on both sides."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = server.wrap_bio(up, down, server_side=True), client.wrap_bio(down, up)
    for _ in range(4):
        for end in reversed(ends):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return ends


def test_the_first_start_makes_a_private_file_and_later_ones_read_it(tmp_path: Path) -> None:
    first = load_or_make_certificate(tmp_path / "state")
    assert first.path == tmp_path / "state" / FILE_NAME
    assert first.path.stat().st_mode & 0o777 == 0o600
    assert load_or_make_certificate(tmp_path / "state") == first
    assert load_or_make_certificate(tmp_path / "other").fingerprint != first.fingerprint


def test_the_certificate_has_no_end_and_names_nobody(certificate: Certificate) -> None:
    parsed = x509.load_pem_x509_certificate(certificate.pem[certificate.pem.index(b"-----BEGIN CERT") :])
    assert parsed.not_valid_after_utc == datetime(9999, 12, 31, 23, 59, 59, tzinfo=timezone.utc)
    assert parsed.not_valid_before_utc.year == 2000
    assert parsed.subject.rfc4514_string() == "CN=task-offload"
    assert parsed.public_key().curve.name == "secp256r1"


def test_servers_that_start_at_once_have_one_key(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from task_offload.transport.certificates import load_or_make_certificate as load; "
        "sys.stdin.readline(); print(load(pathlib.Path(sys.argv[1])).fingerprint.hex())"
    )
    servers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "state")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        for _ in range(4)
    ]
    for server in servers:
        assert server.stdin is not None
        server.stdin.write("go\n")
        server.stdin.flush()
    fingerprints = {server.communicate(timeout=30)[0].strip() for server in servers}
    assert len(fingerprints) == 1
    assert len(fingerprints.pop()) == 64
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == [FILE_NAME, "lock"]


def test_a_missing_package_is_named_on_the_first_start_only(
    tmp_path: Path, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(ConfigError, match=r"pip install \"task-offload\[cloud\]\""):
        load_or_make_certificate(tmp_path / "state")
    assert not (tmp_path / "state" / FILE_NAME).exists()
    assert load_or_make_certificate(certificate.path.parent) == certificate


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = load_or_make_certificate(tmp_path / "state").path
    path.chmod(0o644)
    with pytest.raises(ConfigError, match=r"identity\.pem: other users may have read"):
        load_or_make_certificate(tmp_path / "state")


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"-----BEGIN CERTIFICATE-----\nAAAA", b"hello"])
def test_a_damaged_file_is_one_clear_line(tmp_path: Path, content: bytes) -> None:
    path = load_or_make_certificate(tmp_path / "state").path
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="put your backup in its place"):
        load_or_make_certificate(tmp_path / "state")


def test_a_certificate_without_its_key_is_one_clear_line(certificate: Certificate, tmp_path: Path) -> None:
    other = load_or_make_certificate(tmp_path / "state")
    begin = certificate.pem.index(b"-----BEGIN CERT")
    for pem in (certificate.pem[begin:], certificate.pem[:begin] + other.pem[other.pem.index(b"-----BEGIN CERT") :]):
        other.path.write_bytes(pem)
        with pytest.raises(ConfigError, match="put your backup in its place"):
            server_context(load_or_make_certificate(tmp_path / "state"))


def test_an_encrypted_key_does_not_ask_at_the_terminal(certificate: Certificate, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization as s

    key = s.load_pem_private_key(certificate.pem, None)
    encrypted = key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.BestAvailableEncryption(b"x"))
    path = load_or_make_certificate(tmp_path / "state").path
    path.write_bytes(encrypted + certificate.pem[certificate.pem.index(b"-----BEGIN CERT") :])
    with pytest.raises(ConfigError, match="put your backup in its place"):
        server_context(load_or_make_certificate(tmp_path / "state"))


def test_a_new_key_where_devices_were_enrolled_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_or_make_certificate(tmp_path / "state").path.unlink()
    (tmp_path / "state" / "devices.json").write_text("{}")
    load_or_make_certificate(tmp_path / "state")
    assert "enroll every device again" in caplog.text


def test_a_device_sees_the_certificate_that_its_token_names(certificate: Certificate, tmp_path: Path) -> None:
    token = Token("pi", certificate.fingerprint, bytes(32))
    _, device = connect(server_context(certificate), client_context())
    shown = device.getpeercert(binary_form=True)
    assert shown is not None
    assert fingerprint(shown) == certificate.fingerprint
    assert token.trusts(shown)
    impostor = load_or_make_certificate(tmp_path / "impostor")
    _, device = connect(server_context(impostor), client_context())
    assert not token.trusts(device.getpeercert(binary_form=True))


@pytest.mark.parametrize(
    ("aes_in_hardware", "cipher"),
    [(True, "ECDHE-ECDSA-AES128-GCM-SHA256"), (False, "ECDHE-ECDSA-CHACHA20-POLY1305")],
)
def test_the_device_chooses_the_cipher(certificate: Certificate, aes_in_hardware: bool, cipher: str) -> None:
    server, device = connect(server_context(certificate), client_context(aes_in_hardware))
    for end in (server, device):
        chosen = end.cipher()
        assert chosen is not None
        assert chosen[0] == cipher
        assert end.compression() is None
    device.write(b"hello")
    assert server.read(5) == b"hello"


def test_a_client_in_another_language_may_use_tls_1_3_without_tickets(certificate: Certificate) -> None:
    context = client_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_3
    _, device = connect(server_context(certificate), context)
    assert device.version() == "TLSv1.3"
    with pytest.raises(ssl.SSLWantReadError):
        device.read(1)
    assert device.session is None or not device.session.has_ticket


def test_older_versions_and_plain_ciphers_are_refused(certificate: Certificate) -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname = False
    old.verify_mode = ssl.CERT_NONE
    old.set_ciphers("ECDHE-ECDSA-AES128-SHA:ECDHE-ECDSA-AES256-SHA384")
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        connect(server_context(certificate), old)
    for context in (client_context(), server_context(certificate)):
        assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
        assert context.options & ssl.OP_NO_RENEGOTIATION
        assert {each["kea"] for each in context.get_ciphers() if each["protocol"] == "TLSv1.2"} == {"kx-ecdhe"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor : 0\nflags\t\t: fpu aes avx2\n", True),
        ("flags : fpu sse2\nflags : fpu sse2\n", False),
        ("processor : 0\nFeatures\t: fp asimd evtstrm aes pmull sha1 sha2 crc32\nModel : Raspberry Pi 5\n", True),
        ("processor : 0\nFeatures\t: half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 crc32\n", False),
        ("cpu : something else\n", True),
    ],
)
def test_looks_for_aes_instructions(tmp_path: Path, text: str, expected: bool) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert has_aes_instructions(tmp_path / "cpuinfo") is expected
    assert has_aes_instructions(tmp_path / "missing") is True


def test_the_private_key_is_not_shown(certificate: Certificate) -> None:
    assert "PRIVATE" not in repr(certificate)
    assert certificate.fingerprint.hex() in repr(certificate)
