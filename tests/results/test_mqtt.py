"""MQTT: against a real broker, a mosquitto process, where one is installed."""

from __future__ import annotations

import json
import queue
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from task_offload.errors import ConfigError, StoreError
from task_offload.results.mqtt import Broker, MqttSink, parse_broker
from task_offload.results.recorder import Recorder
from task_offload.results.specs import open_results
from tests.results.records import record, row

LONG_S = 20.0
PROJECT = Path(__file__).parents[2]


class Mosquitto:
    """A broker on a loopback port, which can be stopped and started again."""

    def __init__(self, program: str, folder: Path, extra: str = "allow_anonymous true\n") -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.port = server.getsockname()[1]
        self._config = folder / "mosquitto.conf"
        self._config.write_text(f"listener {self.port} 127.0.0.1\n{extra}")
        self._program = program
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(
            [self._program, "-c", self._config], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
        assert self._process.stderr is not None
        said = ""
        for line in self._process.stderr:
            said += line
            if "running" in line:
                return
        raise AssertionError(f"mosquitto did not start: {said}")

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stderr is not None
        self._process.stderr.close()


@pytest.fixture
def program() -> str:
    pytest.importorskip("paho.mqtt.client", reason="paho-mqtt is not installed")
    program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        pytest.skip("mosquitto is not installed")
    return program


@pytest.fixture
def broker(program: str, tmp_path: Path) -> Iterator[Mosquitto]:
    broker = Mosquitto(program, tmp_path)
    yield broker
    broker.stop()


class Subscriber:
    """Everything under the prefix, as it comes."""

    def __init__(self, port: int) -> None:
        import paho.mqtt.client as paho
        from paho.mqtt.enums import CallbackAPIVersion

        self._messages: queue.SimpleQueue[tuple[str, bytes]] = queue.SimpleQueue()
        subscribed: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._client = paho.Client(CallbackAPIVersion.VERSION2)
        self._client.on_connect = lambda client, *_: client.subscribe("task_offload/#", qos=1)
        self._client.on_subscribe = lambda *_: subscribed.put(None)
        self._client.on_message = lambda _client, _data, message: self._messages.put((message.topic, message.payload))
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        subscribed.get(timeout=LONG_S)

    def next(self) -> tuple[str, Any]:
        topic, payload = self._messages.get(timeout=LONG_S)
        return topic, payload.decode() if topic.endswith("/status") else json.loads(payload)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def subscriber(broker: Mosquitto) -> Iterator[Subscriber]:
    subscriber = Subscriber(broker.port)
    yield subscriber
    subscriber.close()


def test_each_item_comes_on_its_devices_topic_and_the_status_is_kept(broker: Mosquitto, subscriber: Subscriber) -> None:
    (sink,) = open_results([f"mqtt://127.0.0.1:{broker.port}"]).sinks
    assert subscriber.next() == ("task_offload/status", "online")
    sink.write([row(0, result='{"x":1}'), row(1, device="roof/#1 east")])
    topic, item = subscriber.next()
    assert topic == "task_offload/items/pi-1"
    assert (item["sequence"], item["ending"], item["result"]) == (0, "completed", {"x": 1})
    assert subscriber.next()[0] == "task_offload/items/roof%2F%231 east"
    late = Subscriber(broker.port)
    assert late.next() == ("task_offload/status", "online")
    late.close()
    sink.close()
    assert subscriber.next() == ("task_offload/status", "offline")


def test_a_large_batch_is_confirmed_whole(broker: Mosquitto, subscriber: Subscriber) -> None:
    (sink,) = open_results([f"mqtt://127.0.0.1:{broker.port}"]).sinks
    assert subscriber.next() == ("task_offload/status", "online")
    sink.write([row(i) for i in range(1000)])
    assert [subscriber.next()[1]["sequence"] for _ in range(1000)] == list(range(1000))
    sink.close()


SERVER = """
import sys
from task_offload.results.mqtt import MqttSink, parse_broker
sink = MqttSink(parse_broker(sys.argv[1]))
sys.stdin.read()
"""


def test_the_broker_says_offline_when_the_server_was_killed(broker: Mosquitto, subscriber: Subscriber) -> None:
    address = f"mqtt://127.0.0.1:{broker.port}"
    with subprocess.Popen([sys.executable, "-c", SERVER, address], cwd=PROJECT, stdin=subprocess.PIPE) as server:
        assert subscriber.next() == ("task_offload/status", "online")
        server.send_signal(signal.SIGKILL)
        assert subscriber.next() == ("task_offload/status", "offline")


def test_a_broker_that_goes_and_comes_back_stalls_nothing_and_gets_what_waited(
    program: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broker = Mosquitto(program, tmp_path)
    recorded: queue.SimpleQueue[int] = queue.SimpleQueue()
    results = open_results(["sqlite:" + str(tmp_path / "results.sqlite"), f"mqtt://127.0.0.1:{broker.port}"])
    recorder = Recorder(
        results.store, results.sinks, on_recorded=lambda records, _: [recorded.put(each.sequence) for each in records]
    )
    subscriber = Subscriber(broker.port)
    assert subscriber.next() == ("task_offload/status", "online")
    recorder.add([record(0)])
    assert subscriber.next()[1]["sequence"] == 0
    subscriber.close()
    broker.stop()
    recorder.add([record(1)])
    recorder.add([record(2)])
    assert [recorded.get(timeout=LONG_S) for _ in range(3)] == [0, 1, 2]
    broker.start()
    subscriber = Subscriber(broker.port)
    seen = set()
    while not {1, 2} <= seen:
        topic, item = subscriber.next()
        if topic != "task_offload/status":
            seen.add(item["sequence"])
    assert recorder.close() == 0
    assert "missed" not in caplog.text
    subscriber.close()
    broker.stop()


def test_a_broker_that_is_not_there_is_told_at_once(program: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    sink = MqttSink(parse_broker(f"mqtt://user:secret@127.0.0.1:{port}/site"))
    with pytest.raises(StoreError, match="the broker is not reached") as raised:
        sink.write([row(0)])
    assert "secret" not in str(raised.value)
    sink.close()


def test_paho_is_asked_for_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "paho.mqtt.client", None)
    with pytest.raises(ConfigError, match="pip install 'paho-mqtt>=2,<3'"):
        open_results(["mqtt://127.0.0.1"])


@pytest.mark.parametrize(
    ("address", "broker"),
    [
        ("mqtt://broker", Broker("broker", 1883, False, "task_offload", None, None)),
        ("mqtts://broker", Broker("broker", 8883, True, "task_offload", None, None)),
        ("mqtt://broker:99/", Broker("broker", 99, False, "task_offload", None, None)),
        ("mqtt://me:p%40ss@[::1]:99/a/b", Broker("::1", 99, False, "a/b", "me", "p@ss")),
    ],
)
def test_addresses(address: str, broker: Broker) -> None:
    assert parse_broker(address) == broker


@pytest.mark.parametrize(
    "address",
    ["mqtt://", "mqtt:broker", "mqtt://broker:port", "mqtt://broker:99999", "mqtt://b/+/x", "mqtt://b?q", "http://b"],
)
def test_an_address_that_cannot_be_meant(address: str) -> None:
    with pytest.raises(ConfigError, match="MQTT"):
        parse_broker(address)
