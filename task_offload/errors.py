"""Every error of the framework, in one tree.

    OffloadError
    ├── ConfigError        what the user gave cannot work: exit status 2
    │   └── AppError       the app does not load or breaks the Task Interface
    ├── SourceError        the first task's source cannot be opened, read or decoded: ends the run, exit status 1
    ├── PayloadError       a task's arguments cannot travel: costs that item
    ├── ProtocolError      the peer sent what the protocol forbids: costs that connection
    ├── RefusedError       the peer refused us, with a code (`wire.messages.Refusal`)
    ├── LinkError          a connection could not be made, or was lost
    └── StoreError         a place for results or for the spool cannot be used
        └── SpoolFull      (`spool`) the spool has no room

A message says what happened and what to do next.
"""

from __future__ import annotations


class OffloadError(Exception):
    """Base of all errors that this package raises on purpose."""


class ConfigError(OffloadError):
    """An argument, an environment variable or a file that the user gave cannot work."""


class AppError(ConfigError):
    """The app does not load, or breaks the Task Interface."""


class SourceError(OffloadError):
    """The source of the first task cannot be opened, read or decoded.

    An app's first task or `open_source` raises it to end the run with one clear line.
    """


class PayloadError(OffloadError):
    """Arguments that a task returned cannot travel to the other side."""


class ProtocolError(OffloadError):
    """The peer sent something that the protocol forbids. The connection cannot be used any more."""


class RefusedError(OffloadError):
    """The peer refused the connection or ended it, and said why.

    Arguments:
        code: one of `wire.messages.Refusal`.
        message: the peer's reason, for people.
        lasting: True if waiting cannot mend it (version, chain, token).
        retry_after_s: seconds after which the peer asks to be tried again; None if it does not say.
    """

    def __init__(self, code: int, message: str, lasting: bool, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.lasting = lasting
        self.retry_after_s = retry_after_s


class LinkError(OffloadError):
    """A connection could not be made, or was lost. The cause is kept as `__cause__`."""


class StoreError(OffloadError):
    """A place for results or for the spool cannot be opened or written."""
