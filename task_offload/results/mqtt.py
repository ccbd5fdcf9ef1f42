"""A sink that publishes every row to an MQTT broker. In: rows. Out: a message for each on its device's topic.

    PREFIX/items/DEVICE   each item of the device as a JSON object, the same as a line of `jsonl`
    PREFIX/status         "online" or "offline", retained; the broker itself says "offline" when the server is gone

A message that the broker has not confirmed (QoS 1) is published again, so one may come twice; its session and
sequence tell.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, unquote, urlsplit

from task_offload.errors import ConfigError, StoreError
from task_offload.results.base import Row
from task_offload.results.jsonl import json_line

if TYPE_CHECKING:
    import paho.mqtt.client as paho

DEFAULT_PREFIX: Final = "task_offload"
CONFIRM_S: Final = 5.0  # how long the broker may take for a batch
GOODBYE_S: Final = 1.0
KEEPALIVE_S: Final = 30
LONGEST_RECONNECT_S: Final = 30


@dataclass(frozen=True)
class Broker:
    """What an `mqtt://` address says: `mqtt[s]://[USER:PASSWORD@]HOST[:PORT][/PREFIX]`, with `mqtts` over TLS."""

    host: str
    port: int
    tls: bool
    prefix: str
    user: str | None
    password: str | None = field(repr=False)


def parse_broker(address: str) -> Broker:
    """Raises ConfigError if the address cannot be meant."""
    try:
        url = urlsplit(address)
        port = url.port
    except ValueError as error:
        raise ConfigError(f"--results: the MQTT address cannot be read ({error}); {_FORM}") from error
    prefix = unquote(url.path.strip("/")) or DEFAULT_PREFIX
    if url.scheme not in ("mqtt", "mqtts") or not url.hostname or url.query or url.fragment:
        raise ConfigError(f"--results: the MQTT address cannot be read; {_FORM}")
    if set(prefix) & set("+#\0"):
        raise ConfigError("--results: an MQTT topic may not have + or # in it; name another prefix")
    tls = url.scheme == "mqtts"
    user = None if url.username is None else unquote(url.username)
    password = None if url.password is None else unquote(url.password)
    return Broker(url.hostname, port or (8883 if tls else 1883), tls, prefix, user, password)


_FORM: Final = "write mqtt://HOST, mqtt://HOST:PORT/PREFIX or mqtts://USER:PASSWORD@HOST"


class MqttSink:
    """Results as MQTT messages. The broker need not be there; until it is, `write` fails at once.

    Raises:
        ConfigError: paho-mqtt is not installed.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._refusal: str | None = None
        try:
            self._client = self._connect()
        except ImportError as error:
            raise ConfigError("--results mqtt: it needs paho-mqtt; pip install 'paho-mqtt>=2,<3'") from error

    @property
    def name(self) -> str:
        return f"mqtt://{self._broker.host}:{self._broker.port}/{self._broker.prefix}"  # without the password

    def write(self, rows: Sequence[Row]) -> None:
        """Publishes rows, and waits until the broker has confirmed them all.

        Raises:
            StoreError: it has not; some may have been delivered all the same.
        """
        if not self._client.is_connected():
            raise StoreError(f"{self.name}: {self._refusal or 'the broker is not reached'}; it is tried again")
        sent = [self._client.publish(self._topic(row.device), json_line(row)[:-1], qos=1) for row in rows]
        deadline = time.monotonic() + CONFIRM_S
        try:
            for each in sent:
                each.wait_for_publish(max(0.0, deadline - time.monotonic()))
            confirmed = all(each.is_published() for each in sent)
        except (RuntimeError, ValueError):  # paho's words for a connection that is gone
            confirmed = False
        if not confirmed:
            self._begin_anew()
            raise StoreError(f"{self.name}: the broker does not confirm; it is tried again")

    def close(self) -> None:
        """Says "offline", and goes."""
        if self._client.is_connected():
            said = self._client.publish(self._status, "offline", qos=1, retain=True)
            with suppress(RuntimeError, ValueError):  # paho's words for a connection that is gone
                said.wait_for_publish(GOODBYE_S)
        self._client.disconnect()
        self._client.loop_stop()

    def _topic(self, device: str) -> str:
        return f"{self._broker.prefix}/items/{quote(device, safe=' ')}"

    @property
    def _status(self) -> str:
        return f"{self._broker.prefix}/status"

    def _begin_anew(self) -> None:
        """Forgets what the client has in hand, or it would send that when it is back, and the next `write` too."""
        self._client.disconnect()
        self._client.loop_stop()
        self._client = self._connect()

    def _connect(self) -> paho.Client:
        import paho.mqtt.client as paho
        from paho.mqtt.enums import CallbackAPIVersion

        broker = self._broker
        client = paho.Client(CallbackAPIVersion.VERSION2)
        client.on_connect = self._connected
        if broker.user is not None:
            client.username_pw_set(broker.user, broker.password)
        if broker.tls:
            client.tls_set()
        client.will_set(self._status, "offline", qos=1, retain=True)
        client.max_inflight_messages_set(65535)  # a batch is confirmed as a whole
        client.reconnect_delay_set(1, LONGEST_RECONNECT_S)
        client.connect_async(broker.host, broker.port, KEEPALIVE_S)
        client.loop_start()
        return client

    def _connected(self, client: paho.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self._refusal = f"the broker refuses ({reason})" if reason.is_failure else None
        if not reason.is_failure:
            client.publish(self._status, "online", qos=1, retain=True)
