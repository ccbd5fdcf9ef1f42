import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace

import cv2
import numpy as np
import pytest

from ball_tracking_example.video_source import LONGEST_WAIT_S, VideoSource
from task_offload.errors import SourceError

from .conftest import write_video

PROJECT = Path(__file__).parents[2]
FRAME = np.zeros((4, 6, 3), np.uint8)


def flat(value: int) -> np.ndarray:
    return np.full((120, 160, 3), value, np.uint8)


class FakeCapture:
    """Yields some frames, then nothing, as a camera does that was pulled out."""

    def __init__(self, frames: int, properties: dict[int, float] | None = None) -> None:
        self.frames = frames
        self.properties = properties or {}
        self.released = False

    def read(self) -> tuple[bool, np.ndarray | None]:
        assert not self.released
        if self.frames == 0:
            return False, None
        self.frames -= 1
        return True, FRAME

    def get(self, prop: int) -> float:
        return self.properties.get(prop, 0.0)

    def release(self) -> None:
        self.released = True


class World:
    """What opens, one after the other, and how long the source waited in between."""

    def __init__(self, *captures: FakeCapture | None) -> None:
        self.captures = list(captures)
        self.left = list(captures)
        self.waits_s: list[float] = []

    def open(self, source: str) -> FakeCapture | None:
        return self.left.pop(0)

    def source(self, name: str) -> VideoSource:
        return VideoSource(name, open_capture=self.open, sleep=self.waits_s.append)


class TestFiles:
    def test_every_frame_once_then_none(self, tmp_path: Path) -> None:
        video = VideoSource(str(write_video(tmp_path / "a.mp4", [flat(40 * i) for i in range(5)], fps=12.5)))
        assert video.fps == 12.5
        means = [video.read().mean() for _ in range(5)]
        assert means == pytest.approx([0, 40, 80, 120, 160], abs=6)
        assert video.read() is None
        assert video.read() is None

    def test_a_files_end_is_not_waited_for(self) -> None:
        world = World(FakeCapture(3, {cv2.CAP_PROP_FRAME_COUNT: 99, cv2.CAP_PROP_FPS: 25.0}))
        video = world.source("a.mp4")
        assert [video.read() is None for _ in range(4)] == [False, False, False, True]
        assert world.waits_s == []

    @pytest.mark.parametrize(("said", "tells"), [(3.0, False), (3.2, False), (10.0, True), (0.0, False)])
    def test_a_file_that_breaks_off_is_told_once(
        self, said: float, tells: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        world = World(FakeCapture(3, {cv2.CAP_PROP_FRAME_COUNT: said}))
        video = world.source("a.mp4")
        while video.read() is not None:
            pass
        assert video.read() is None
        told = ["a.mp4 breaks off after 3 of its 10 frames; is it damaged? try to play it"]
        assert [record.message for record in caplog.records] == (told if tells else [])
        assert world.captures[0].released

    @pytest.mark.parametrize("stated", [0.0, -1.0, float("nan"), 90000.0])
    def test_a_file_that_tells_no_sensible_rate_has_the_usual_one(self, stated: float) -> None:
        assert World(FakeCapture(1, {cv2.CAP_PROP_FPS: stated})).source("a.mp4").fps == 30.0

    def test_after_close(self) -> None:
        world = World(FakeCapture(3))
        video = world.source("a.mp4")
        video.read()
        video.close()
        assert world.captures[0].released
        assert video.read() is None


class TestLiveSources:
    @pytest.mark.parametrize("name", ["0", "picamera2", "rtsp://host/stream", "HTTP://host:8080/video"])
    def test_it_has_no_rate(self, name: str) -> None:
        assert World(FakeCapture(1, {cv2.CAP_PROP_FPS: 30.0})).source(name).fps is None

    def test_a_recording_behind_a_url_is_a_file(self) -> None:
        world = World(FakeCapture(2, {cv2.CAP_PROP_FPS: 25.0, cv2.CAP_PROP_FRAME_COUNT: 2}))
        video = world.source("https://host/a.mp4")
        assert video.fps == 25.0
        assert [video.read() is None for _ in range(3)] == [False, False, True]

    def test_a_camera_that_comes_back_is_opened_again(self, caplog: pytest.LogCaptureFixture) -> None:
        world = World(FakeCapture(2), None, None, FakeCapture(0), FakeCapture(3))
        video = world.source("0")
        with caplog.at_level(logging.WARNING):
            for _ in range(5):
                assert video.read() is FRAME
        assert world.waits_s == [0.5, 1.0, 2.0, 4.0]
        assert [capture.released for capture in world.captures if capture] == [True, True, False]
        assert [record.message for record in caplog.records] == [
            "0 is gone; waiting for it to come back",
            "0 is back",
        ]

    def test_the_waits_have_a_limit_and_start_short_again(self) -> None:
        world = World(FakeCapture(1), *[None] * 8, FakeCapture(1), FakeCapture(1))
        video = world.source("0")
        for _ in range(3):
            video.read()
        assert world.waits_s[5:] == [LONGEST_WAIT_S] * 4 + [0.5]

    def test_a_password_is_not_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        video = World(FakeCapture(1), FakeCapture(1)).source("rtsp://me:secret@host/stream")
        with caplog.at_level(logging.WARNING):
            video.read()
            video.read()
        assert "rtsp://host/stream is gone" in caplog.text
        assert "secret" not in caplog.text

    def test_a_real_stream_that_breaks_and_returns(self, stream_url: str) -> None:
        waits_s: list[float] = []
        video = VideoSource(stream_url, sleep=waits_s.append)
        assert video.fps is None
        means = [video.read().mean() for _ in range(10)]
        assert means == pytest.approx([0, 40, 80, 120, 160] * 2, abs=6)
        assert waits_s == [0.5]

    @pytest.fixture
    def stream_url(self) -> Iterator[str]:
        """A camera's MJPEG stream on loopback that ends after 5 frames, each time."""

        class Camera(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                for i in range(5):
                    data = cv2.imencode(".jpg", flat(40 * i))[1].tobytes()
                    head = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(data)
                    self.wfile.write(head + data + b"\r\n")

            def log_message(self, *args: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Camera)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/video"
        server.shutdown()
        thread.join()
        server.server_close()


class TestWhatDoesNotOpen:
    @pytest.mark.parametrize(
        ("name", "opens", "message"),
        [
            ("0", None, r"camera 0 does not open; is it plugged in\? \(a Raspberry Pi's own camera is  --source"),
            ("0", FakeCapture(0), r"camera 0 opens but yields no frame; is another program using it\?"),
            ("picamera2", None, "picamera2 finds no camera that works"),
            ("rtsp://me:secret@host/x", None, "^rtsp://host/x does not open as a video stream; check the address"),
        ],
    )
    def test_it_says_why(self, name: str, opens: FakeCapture | None, message: str) -> None:
        with pytest.raises(SourceError, match=message) as caught:
            World(opens).source(name)
        assert "\n" not in str(caught.value)

    def test_no_such_file(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match=r"none\.mp4 does not exist; give a video file"):
            VideoSource(str(tmp_path / "none.mp4"))

    @pytest.mark.parametrize("there", [False, True])
    def test_a_name_that_is_not_utf_8(self, there: bool, tmp_path: Path) -> None:
        path = Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9.mp4"))
        if there:
            path.write_bytes(write_video(tmp_path / "a.mp4", [flat(9)] * 2).read_bytes())
        opened: list[str] = []
        with pytest.raises(SourceError, match="its name is not UTF-8, so OpenCV cannot open it; rename it"):
            VideoSource(str(path), opened.append)  # not OpenCV itself, which would end the tests
        assert not opened

    def test_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match="is a folder"):
            VideoSource(str(tmp_path))

    @pytest.mark.parametrize("damage", ["empty", "text", "cut"])
    def test_a_file_that_is_no_video(self, damage: str, tmp_path: Path) -> None:
        path = write_video(tmp_path / "a.mp4", [flat(9)] * 5)
        whole = path.read_bytes()
        path.write_bytes({"empty": b"", "text": b"hello\n" * 100, "cut": whole[: len(whole) // 2]}[damage])
        with pytest.raises(SourceError, match=r"a\.mp4 cannot be decoded as a video"):
            VideoSource(str(path))

    def test_the_error_stands_alone_on_stderr(self, tmp_path: Path) -> None:
        """OpenCV and FFmpeg have a lot to say of what does not open, and say it past Python."""
        garbage = tmp_path / "garbage.mp4"
        garbage.write_bytes(b"\x00\x00\x00\x18ftypmp42" + bytes(range(256)) * 50)
        names = [str(garbage), str(tmp_path / "none.mp4"), "99", "http://127.0.0.1:9/x"]
        code = (
            "import sys\n"
            "from ball_tracking_example.video_source import VideoSource\n"
            "from task_offload.errors import SourceError\n"
            "for name in sys.argv[1:]:\n"
            "    try: VideoSource(name)\n"
            "    except SourceError as error: print(error, file=sys.stderr)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, *names], cwd=PROJECT, capture_output=True, text=True, timeout=50, check=False
        )
        assert done.returncode == 0
        assert len(done.stderr.splitlines()) == len(names), done.stderr


class TestPiCamera:
    class Camera:
        def __init__(self) -> None:
            self.calls: list[str] = []
            self.broken = False

        def create_video_configuration(self, main: dict[str, object]) -> dict[str, object]:
            return main

        def configure(self, configuration: dict[str, object]) -> None:
            assert configuration == {"format": "RGB888", "size": (640, 480)}
            self.calls.append("configure")

        def start(self) -> None:
            self.calls.append("start")

        def capture_array(self, name: str) -> np.ndarray:
            if self.broken:
                raise RuntimeError("camera frontend has timed out")
            return FRAME

        def close(self) -> None:
            self.calls.append("close")

    def install(self, monkeypatch: pytest.MonkeyPatch, make: object) -> None:
        module = ModuleType("picamera2")
        vars(module).update(SimpleNamespace(Picamera2=make).__dict__)
        monkeypatch.setitem(sys.modules, "picamera2", module)

    def test_frames(self, monkeypatch: pytest.MonkeyPatch) -> None:
        cameras: list[TestPiCamera.Camera] = []

        def make() -> TestPiCamera.Camera:
            cameras.append(self.Camera())
            return cameras[-1]

        self.install(monkeypatch, make)
        video = VideoSource("picamera2", sleep=lambda _: None)
        assert video.fps is None
        assert video.read() is FRAME
        cameras[0].broken = True
        assert video.read() is FRAME, "it is opened again"
        assert [camera.calls for camera in cameras] == [["configure", "start", "close"], ["configure", "start"]]

    def test_no_camera(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def make() -> None:
            raise IndexError("list index out of range")

        self.install(monkeypatch, make)
        with pytest.raises(SourceError, match="rpicam-hello --list-cameras"):
            VideoSource("picamera2")

    def test_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "picamera2", None)
        with pytest.raises(SourceError, match="sudo apt install python3-picamera2"):
            VideoSource("picamera2")
