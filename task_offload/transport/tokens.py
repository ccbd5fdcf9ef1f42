"""Device names and join tokens, pure. In: a name, a line that someone pasted. Out: the same, checked and taken apart.

A token is what a device needs to join: whom it is (the name), whom it trusts (the fingerprint of the cloud's
certificate) and how it proves its name (its secret). As text it is one line without spaces or quotes:

    offload1_ + base64url( name's bytes: u8 | name: UTF-8 | fingerprint: 32 bytes | secret: 32 bytes | CRC-32: u32 )

The CRC recognises an incomplete paste; it protects nothing else, nor does it need to.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import os
import stat
import struct
import unicodedata
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from task_offload.errors import ConfigError

log = logging.getLogger(__name__)

PREFIX = "offload1_"
NAME_LIMIT_BYTES = 64
FINGERPRINT_BYTES = 32
SECRET_BYTES = 32
TOKEN_VARIABLE = "OFFLOAD_TOKEN"
TOKEN_FILE_VARIABLE = "OFFLOAD_TOKEN_FILE"

_CRC = struct.Struct("<I")
_FIXED_BYTES = 1 + FINGERPRINT_BYTES + SECRET_BYTES + _CRC.size
_TEXT_LIMIT = 4096  # far more than a token needs; a wrong file is not read whole


@dataclass(frozen=True)
class Token:
    """What a device needs to join a cloud.

    Attributes:
        device: the device's name; None in a loopback token, with which a device names itself.
        fingerprint: SHA-256 of the cloud's certificate, see `certificates`.
        secret: proves the name; goes to nobody but the holder of that certificate, and never into a log.
    """

    device: str | None
    fingerprint: bytes
    secret: bytes = field(repr=False)

    def trusts(self, certificate: bytes | None) -> bool:
        """Whether a peer's certificate (DER, `SSLSocket.getpeercert(True)`) is the one that this token names.

        Ask before the secret is sent. The time it takes says nothing about the fingerprint.
        """
        return certificate is not None and hmac.compare_digest(fingerprint(certificate), self.fingerprint)


def fingerprint(certificate: bytes) -> bytes:
    """SHA-256 of a certificate in DER: of the whole of it rather than of its key (SPKI), because Python's ssl hands a
    device exactly these bytes, and taking the key out of them would need an ASN.1 parser there. It costs nothing: the
    certificate has no end that would call for a renewal with the same key."""
    return hashlib.sha256(certificate).digest()


def check_device_name(name: str) -> str:
    """Returns the name as it is used everywhere: in logs, MQTT topics, window titles and the store.

    Letters and digits of any script, and dot, dash, underscore and space between them; at most 64 bytes of UTF-8. It is
    normalised (NFC), so that the same name typed on two keyboards is the same device.

    Raises:
        ConfigError: the name is empty, too long, or has another character.
    """
    name = unicodedata.normalize("NFC", name)
    shown = ascii(name[:80])
    if not name:
        raise ConfigError("the device name is empty; give it letters and digits")
    if len(name.encode("utf-8", "surrogatepass")) > NAME_LIMIT_BYTES:
        raise ConfigError(f"device name {shown}: it is longer than {NAME_LIMIT_BYTES} bytes; give a shorter one")
    if not all(unicodedata.category(each)[0] in "LMN" or each in "._- " for each in name):
        raise ConfigError(f"device name {shown}: use letters, digits, dot, dash, underscore and space only")
    if unicodedata.category(name[0])[0] not in "LN" or name[-1] == " ":
        raise ConfigError(f"device name {shown}: begin it with a letter or digit, and end it without a space")
    return name


def format_token(token: Token) -> str:
    """The token as text, one line, safe in a URL, a shell and an environment file."""
    name = (token.device or "").encode()
    body = bytes([len(name)]) + name + token.fingerprint + token.secret
    return PREFIX + base64.urlsafe_b64encode(body + _CRC.pack(zlib.crc32(body))).rstrip(b"=").decode()


def parse_token(text: str) -> Token:
    """Takes a token apart. Line breaks and spaces that a terminal put into it do no harm.

    Raises:
        ConfigError: it is no token, or not a whole one. The text itself is not repeated: it holds a secret.
    """
    text = "".join(text.split())
    if not text.startswith(PREFIX):
        if text and PREFIX.startswith(text):
            raise ConfigError("the token is incomplete: paste the whole line again")
        raise ConfigError(
            f"this is not a token: one begins with {PREFIX}; paste the line that the server prints for "
            "python3 cloud_server_coordinator.py --enroll NAME"
        )
    encoded = text[len(PREFIX) :]
    try:
        data = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        data = b""
    body = data[: -_CRC.size]
    if len(data) < _FIXED_BYTES or _CRC.pack(zlib.crc32(body)) != data[-_CRC.size :]:
        raise ConfigError("the token is incomplete: paste the whole line again")
    begin = 1 + body[0]
    if len(data) != _FIXED_BYTES + body[0]:
        raise ConfigError("the token has lengths that do not match: ask the server for a new one")
    try:
        device = check_device_name(body[1:begin].decode()) if body[0] else None
    except UnicodeDecodeError:
        raise ConfigError("the token has a device name that is no text: ask the server for a new one") from None
    return Token(device, body[begin : begin + FINGERPRINT_BYTES], body[begin + FINGERPRINT_BYTES :])


@lru_cache(maxsize=16)  # the file is read again before each connection
def _warn_of_readers(path: str) -> None:
    log.warning("every user of this machine can read this device's token; run  chmod 600 %s", path)


def token_from_environment(environ: Mapping[str, str] = os.environ) -> Token | None:
    """The token of $OFFLOAD_TOKEN, or of the file that $OFFLOAD_TOKEN_FILE names; None where neither is set.

    Raises:
        ConfigError: the file cannot be read, or what is there is no whole token.
    """
    if text := environ.get(TOKEN_VARIABLE):
        where = TOKEN_VARIABLE
    elif path := environ.get(TOKEN_FILE_VARIABLE):
        where = f"{TOKEN_FILE_VARIABLE} {path}"
        try:
            with Path(path).open(encoding="utf-8") as file:
                if os.fstat(file.fileno()).st_mode & stat.S_IROTH:
                    _warn_of_readers(path)
                text = file.read(_TEXT_LIMIT)
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            raise ConfigError(f"{where}: {reason}; name the file that holds this device's token") from error
    else:
        return None
    try:
        return parse_token(text)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
