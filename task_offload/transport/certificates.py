"""The cloud's key and certificate, and TLS on both sides. In: the state folder. Out: ssl contexts.

There is no authority and no name to check: a device trusts exactly one certificate, the one whose fingerprint its
token carries. So a server needs no domain, a device no clock, and neither anything that expires.
"""

from __future__ import annotations

import logging
import ssl
from dataclasses import dataclass
from pathlib import Path

from task_offload.errors import ConfigError
from task_offload.transport import registry
from task_offload.transport.private_files import folder_lock, make_state_folder, read_private, write_private
from task_offload.transport.tokens import fingerprint

log = logging.getLogger(__name__)

FILE_NAME = "identity.pem"

# With forward secrecy and an authenticated cipher: of the suites of TLS 1.2, what RFC 9325 recommends.
_TLS12_AES_FIRST = "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-ECDSA-CHACHA20-POLY1305"
_TLS12_CHACHA_FIRST = "ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-ECDSA-AES128-GCM-SHA256"


@dataclass(frozen=True)
class Certificate:
    """The cloud's identity on disk.

    Attributes:
        path: the file with the private key and the certificate, both PEM.
        pem: its content; private.
        fingerprint: SHA-256 of the certificate in DER.
    """

    path: Path
    pem: bytes
    fingerprint: bytes

    def __repr__(self) -> str:
        return f"Certificate({str(self.path)!r}, {self.fingerprint.hex()})"


def load_or_make_certificate(state_dir: Path) -> Certificate:
    """The state folder's certificate. It is made on the first start; servers that start at once get the same one.

    Raises:
        ConfigError: the folder or the file cannot be used, or `cryptography` is missing on the first start.
    """
    path = make_state_folder(state_dir) / FILE_NAME
    try:
        pem = read_private(path)
    except FileNotFoundError:
        with folder_lock(state_dir):
            try:
                pem = read_private(path)
            except FileNotFoundError:
                pem = _make_pem()
                write_private(path, pem)
                if (state_dir / registry.FILE_NAME).exists():
                    log.warning("%s was missing: a new key was made, so enroll every device again", path)
    try:
        text = pem.decode("ascii")
        der = ssl.PEM_cert_to_DER_cert(text[text.index(ssl.PEM_HEADER) :])
    except ValueError as error:
        raise _damaged(path) from error
    return Certificate(path, pem, fingerprint(der))


def server_context(certificate: Certificate) -> ssl.SSLContext:
    """TLS for the cloud: 1.2 or 1.3, whichever the device asks for, and the device's choice of cipher, since the device
    is the weaker side. Nothing is resumed: connections are few and long. Devices prove themselves by their secret
    inside the connection, so no certificate is asked of them.

    Raises:
        ConfigError: the file does not hold a key and its certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _set_common_options(context)
    context.set_ciphers(_TLS12_AES_FIRST)
    context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    context.num_tickets = 0
    try:
        context.load_cert_chain(certificate.path, password="")  # with a password it would be asked for at the terminal
    except (OSError, ssl.SSLError) as error:
        raise _damaged(certificate.path) from error
    return context


def client_context(aes_in_hardware: bool | None = None) -> ssl.SSLContext:
    """TLS for a device. It checks no authority, host name or date: call `Token.trusts` after the handshake instead.

    That is sound. The handshake itself proves, in every version, that the peer holds the private key of the certificate
    that it shows (it signs the key exchange; OpenSSL checks this whatever `verify_mode` says). The fingerprint then
    proves that this certificate is the cloud's. An authority would add only people who can issue another one.

    It asks for TLS 1.2, where Python can order the ciphers; in 1.3 OpenSSL puts AES-256 first, always. Encrypting one
    frame of 421,500 bytes (OpenSSL 3.0, x86-64, microseconds of CPU): AES-128 of TLS 1.2 takes 224, AES-256 of TLS 1.3
    243, ChaCha20 288; with the AES instructions switched off, as on a Raspberry Pi 4, 2,000, 2,340 and 570.

    Arguments:
        aes_in_hardware: whether this processor has AES instructions; None to look.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _set_common_options(context)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if aes_in_hardware is None:
        aes_in_hardware = has_aes_instructions()
    context.set_ciphers(_TLS12_AES_FIRST if aes_in_hardware else _TLS12_CHACHA_FIRST)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


def has_aes_instructions(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor computes AES by itself: every x86 of today and a Raspberry Pi 5, but no older Pi. True
    where the system does not tell."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return True
    features = [line.split(":", 1)[1].split() for line in lines if line.lower().startswith(("flags", "features"))]
    return not features or "aes" in features[0]


def _set_common_options(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET


def _damaged(path: Path) -> ConfigError:
    return ConfigError(
        f"{path}: this is not the server's key and certificate any more; put your backup in its place, or remove it "
        "and enroll every device again"
    )


def _make_pem() -> bytes:
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError as error:
        raise ConfigError(
            'the first start makes a key and needs one more package; run  pip install "task-offload[cloud]"  or  '
            "pip install cryptography"
        ) from error
    from datetime import datetime

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "task-offload")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime(2000, 1, 1))
        .not_valid_after(datetime(9999, 12, 31, 23, 59, 59))  # RFC 5280, 4.1.2.5: it has no end
        .sign(key, hashes.SHA256())
    )
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ) + certificate.public_bytes(serialization.Encoding.PEM)
