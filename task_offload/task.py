"""The Task Interface. In: the name of an app. Out: its chain of tasks, checked against the interface.

An app is a Python module that exports `tasks`, a list of at least two callables. Each returns
`(to_continue, args)`, or just `False`. An app may also export `payload_types` and `open_source`.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import os
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeVar

from task_offload.errors import AppError, OffloadError, SourceError

Side = Literal["device", "cloud"]
TaskFunction = Callable[..., Any]
F = TypeVar("F", bound=TaskFunction)

_CONTRACT = "__task_contract__"
MAX_TASKS = 255  # a split travels as one byte
MAX_PAYLOAD_TYPES = 255  # so does their number


@dataclass(frozen=True)
class Contract:
    """What a task asks of the side that runs it.

    Attributes:
        runs_on: the side that the task is pinned to, or None if it may run on either.
        stateful: the task keeps state between items (`current_item().state`).
    """

    runs_on: Side | None = None
    stateful: bool = False

    def __post_init__(self) -> None:
        if self.runs_on not in (None, "device", "cloud"):
            raise ValueError(f"runs_on is 'device' or 'cloud', not {self.runs_on!r}")
        if self.stateful and self.runs_on is None:
            raise ValueError("a stateful task needs a pin: @task(runs_on='device' or 'cloud', stateful=True)")


def task(bare: None = None, /, *, runs_on: Side | None = None, stateful: bool = False) -> Callable[[F], F]:
    """Decorates a task that is pinned to one side, or that keeps state between items there.

    Arguments:
        runs_on: "device" or "cloud"; None lets the scheduler choose.
        stateful: the task sees the items of a device in order, one at a time, and finds its state in
            `current_item().state`. Needs `runs_on`.

    Raises:
        ValueError: the arguments contradict each other.
        TypeError: it decorates without arguments.
    """
    if bare is not None:
        raise TypeError("write @task(...) with runs_on='device' or 'cloud', not @task alone")
    contract = Contract(runs_on, stateful)

    def decorate(function: F) -> F:
        setattr(function, _CONTRACT, contract)
        return function

    return decorate


@dataclass(slots=True)
class Item:
    """What a task may know of the item that it works on. `current_item()` gives it.

    Attributes:
        device: name of the device that captured it.
        session: the session's identity, 32 hexadecimal digits.
        sequence: number of the item on its device, from 0.
        captured_at: Unix seconds by the clock of the side that asks.
        split: how many tasks run on the device for this item; the whole chain in local-only mode.
        state: the running task's own dict for this session. Only a stateful task may keep anything there.
    """

    device: str
    session: str
    sequence: int
    captured_at: float
    split: int
    state: dict[str, Any] = field(default_factory=dict)
    published: Any = None
    captured_s: float = 0.0  # as captured_at, on the device, by the steady clock that ages are counted by


class _Current(threading.local):
    item: Item | None = None


_current = _Current()


def current_item() -> Item:
    """The item that the calling task works on.

    Raises:
        OffloadError: called outside a task.
    """
    item = _current.item
    if item is None:
        raise OffloadError("current_item() was called outside a task; call it in the body of a task")
    return item


def set_current_item(item: Item | None) -> None:
    """Names the item that tasks on this thread work on from now on; None for none."""
    _current.item = item


def publish_frame(image: Any) -> None:
    """Makes `image` the picture of this device that the cloud shows to people. The newest one wins.

    Arguments:
        image: an array of shape (height, width, 3), 8 bits a channel in the order blue, green, red.

    Raises:
        OffloadError: called outside a task.
    """
    current_item().published = image


@dataclass(frozen=True)
class Task:
    """One task of a chain: a function with its name and contract."""

    name: str
    function: TaskFunction
    contract: Contract


@dataclass(frozen=True)
class Chain:
    """The tasks of an app, in order, and what else it exports.

    Attributes:
        app: the module or file that it was loaded from.
        tasks: at least two.
        payload_types: the app's classes that may travel as arguments.
        open_source: the app's own `open_source`, or None.
        source_digest: SHA-256 of the source of the modules and packages that hold the tasks.
    """

    app: str
    tasks: tuple[Task, ...]
    payload_types: tuple[type, ...] = ()
    open_source: Callable[[str | None], float | None] | None = None
    source_digest: bytes = bytes(32)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(task.name for task in self.tasks)

    @property
    def splits(self) -> tuple[int, ...]:
        """The splits that keep the first task on the device, the last in the cloud, and every pin."""
        pins = [task.contract.runs_on for task in self.tasks]
        lowest = max([1] + [i + 1 for i, side in enumerate(pins) if side == "device"])
        highest = min([len(pins) - 1] + [i for i, side in enumerate(pins) if side == "cloud"])
        return tuple(range(lowest, highest + 1))

    @property
    def stateful(self) -> tuple[bool, ...]:
        """For each task, whether it keeps state."""
        return tuple(task.contract.stateful for task in self.tasks)

    def stateful_between(self, begin: int, end: int) -> bool:
        """Whether any of the tasks with index begin to end-1 keeps state."""
        return any(self.stateful[begin:end])


def load_app(app: str) -> Chain:
    """Imports an app and checks that it keeps to the Task Interface.

    Arguments:
        app: a module (`ball_tracking_example.taskified`) or a file (`my/app.py`).

    Raises:
        AppError: it does not import, or breaks the interface; the message says what to mend.
        SourceError: its import says that it needs a source that is not there.
    """
    module = _import(app)
    functions = getattr(module, "tasks", None)
    if not isinstance(functions, Sequence) or isinstance(functions, str):
        raise AppError(f"app {app}: it exports no list named 'tasks'; add  tasks = [first_task, ..., last_task]")
    if not 2 <= len(functions) <= MAX_TASKS:
        raise AppError(f"app {app}: 'tasks' has {len(functions)} entries; a chain has 2 to {MAX_TASKS} tasks")
    for number, function in enumerate(functions, 1):
        if not callable(function):
            raise AppError(f"app {app}: entry {number} of 'tasks' is {function!r:.60}; put a function there")
    tasks = tuple(Task(_name(f), f, getattr(f, _CONTRACT, Contract())) for f in functions)
    _check_pins(app, tasks)
    return Chain(
        app=app,
        tasks=tasks,
        payload_types=_payload_types(app, module),
        open_source=_open_source(app, module),
        source_digest=_digest(functions),
    )


def _import(app: str) -> ModuleType:
    try:
        if app.endswith(".py") or "/" in app or "\\" in app:
            return _import_file(app)
        if not app or app.startswith("."):
            raise AppError(f"app {app!r}: this names no module; give a module or a file to --app")
        if str(Path.cwd()) not in sys.path:  # an installed command does not search the working directory
            sys.path.insert(0, str(Path.cwd()))
        return importlib.import_module(app)
    except (AppError, SourceError, KeyboardInterrupt):
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and (app == error.name or app.startswith(error.name + ".")):
            raise AppError(f"app {app}: there is no module of this name; give a module or a file to --app") from error
        package = {"cv2": "opencv-python"}.get(str(error.name), "it")
        raise AppError(f"app {app}: it imports {error.name}, which is not installed; pip install {package}") from error
    except BaseException as error:  # sys.exit() too
        if any(library in str(error) for library in ("libGL", "libgthread", "libglib")):
            raise AppError(
                f"app {app}: OpenCV needs a system library ({error}); either  sudo apt install libgl1 libglib2.0-0  "
                "or  pip uninstall opencv-python && pip install opencv-python-headless"
            ) from error
        raise AppError(f"app {app}: its import raised {type(error).__name__}: {error}{place_of(error)}") from error


def place_of(error: BaseException) -> str:
    """Where the user's own code raised an error, or called what raised it; empty if it did neither."""
    installed = ("<", sysconfig.get_path("stdlib"), str(Path(__file__).parent))  # "<": importlib, which is frozen
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if not frame.filename.startswith(installed) and not {"site-packages", "dist-packages"} & {*path.parts}:
            return f" at {path.name}:{frame.lineno}"
    return ""


def _import_file(app: str) -> ModuleType:
    path = Path(app).resolve()
    if path.is_dir():
        raise AppError(f"app {app}: this is a folder; give a module or a file to --app")
    if not path.is_file():
        raise AppError(f"app {app}: there is no such file; give a module or a file to --app")
    name = path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise AppError(f"app {app}: this is not a Python file; its name must end in .py")
    if str(path.parent) not in sys.path:  # the app's own helper modules lie beside it
        sys.path.insert(0, str(path.parent))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _name(function: TaskFunction) -> str:
    function = getattr(function, "func", function)  # functools.partial
    return getattr(function, "__name__", type(function).__name__)


def _check_pins(app: str, tasks: tuple[Task, ...]) -> None:
    if tasks[0].contract.runs_on == "cloud":
        raise AppError(f"app {app}: {tasks[0].name} is pinned to the cloud, but the first task runs on the device")
    if tasks[-1].contract.runs_on == "device":
        raise AppError(f"app {app}: {tasks[-1].name} is pinned to the device, but the last task runs in the cloud")
    on_cloud: str | None = None
    for each in tasks:
        if each.contract.runs_on == "cloud":
            on_cloud = on_cloud or each.name
        elif each.contract.runs_on == "device" and on_cloud is not None:
            raise AppError(
                f"app {app}: {each.name} is pinned to the device, but comes after {on_cloud}, which is pinned to "
                "the cloud; no split satisfies both, so change one of the pins or their order"
            )


def _payload_types(app: str, module: ModuleType) -> tuple[type, ...]:
    types = getattr(module, "payload_types", ())
    if not isinstance(types, Sequence) or not all(isinstance(each, type) for each in types):
        raise AppError(f"app {app}: 'payload_types' must be a tuple of classes, such as  payload_types = (Circle,)")
    if len(types) > MAX_PAYLOAD_TYPES:
        raise AppError(f"app {app}: 'payload_types' has {len(types)} classes; {MAX_PAYLOAD_TYPES} may be listed")
    names = [each.__qualname__ for each in types]
    if len(set(names)) != len(names):
        raise AppError(f"app {app}: two classes in 'payload_types' have the same name; rename one")
    return tuple(types)


def _open_source(app: str, module: ModuleType) -> Callable[[str | None], float | None] | None:
    function = getattr(module, "open_source", None)
    if function is not None and not callable(function):
        raise AppError(f"app {app}: 'open_source' must be a function that takes the source")
    return function


def _digest(functions: Sequence[TaskFunction]) -> bytes:
    """Of the modules that hold the tasks; where such a module is part of a package, of the whole package."""
    sources: dict[tuple[str, str], bytes] = {}  # by package and file: packages may have files of the same name
    for name in {getattr(getattr(f, "func", f), "__module__", None) or type(f).__module__ for f in functions}:
        module = sys.modules.get(name)
        file = getattr(module, "__file__", None)
        if module is None or file is None:
            continue
        path, package = Path(file), module.__package__ or ""
        for each in path.parent.glob("*.py") if package else [path]:
            with contextlib.suppress(OSError):
                sources[package, each.name] = each.read_bytes().replace(b"\r\n", b"\n")
    digest = hashlib.sha256()
    for (package, name), source in sorted(sources.items()):
        digest.update(os.fsencode(f"{package}/{name}") + b"\0" + source + b"\0")  # a name need not be UTF-8
    return digest.digest()
