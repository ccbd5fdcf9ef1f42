"""Objects of an app's `payload_types`. In: an object, or what came of it. Out: plain data, or the object.

Pickle's own rules say what an object consists of (`__reduce_ex__`), so what pickles also travels. How it is made
again is decided here, from the class on this side, never from what a peer sends: the peer chooses values only.
"""

from __future__ import annotations

import copyreg
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

from task_offload.errors import PayloadError, ProtocolError

Description = tuple[Any, ...]  # name, arguments[, state[, items[, keys and items]]]

_PLAIN_BASES = (int, float, complex, str, bytes, bytearray, tuple, frozenset)


class PayloadTypes:
    """The classes of an app that may travel, by name.

    A class must make a new object for each call: one that hands out shared objects would let one device's item
    alter another's. (Enums are taken care of: a member travels by its name.)
    """

    def __init__(self, types: Sequence[type]) -> None:
        self._makers = {each.__qualname__: _maker(each) for each in types}
        self.types = tuple(types)

    def describe(self, value: Any) -> Description:
        """The plain data that `make` needs to make an equal object.

        Raises:
            PayloadError: the object cannot be described by its class, arguments and state.
        """
        cls = type(value)
        if issubclass(cls, Enum):
            name = value.name
            if name not in cls.__members__:
                raise PayloadError(f"{value!r} is a combination of flags, which cannot travel; send its .value")
            return (cls.__qualname__, (name,))
        reduced = value.__reduce_ex__(4)
        if isinstance(reduced, str):
            raise PayloadError(f"a {cls.__qualname__} pickles as a global name and cannot travel; send plain data")
        function, args, *rest = reduced
        if function is copyreg.__newobj__ and args[0] is cls:  # type: ignore[attr-defined]
            args = args[1:]
        elif function is not cls or not _reduces_itself(cls):
            raise PayloadError(
                f"a {cls.__qualname__} is made by {getattr(function, '__qualname__', function)!s}, not by its class, "
                "and cannot travel; give it a __reduce__ that returns (its class, arguments), or send plain data"
            )
        rest = [*rest, None, None, None][:3]
        rest[1] = None if rest[1] is None else list(rest[1])
        rest[2] = None if rest[2] is None else dict(rest[2])
        while rest and rest[-1] is None:
            del rest[-1]
        return (cls.__qualname__, tuple(args), *rest)

    def make(self, description: Description) -> Any:
        """The object that `describe` described.

        Raises:
            ProtocolError: no class of this name is listed, or the description does not fit it. What the class
                itself raises is not caught.
        """
        name, args, state, items, pairs = (*description, None, None, None)[:5]
        maker = self._makers.get(name)
        if maker is None:
            raise ProtocolError(f"{name!r:.100} is not among this side's payload_types")
        if type(args) is not tuple:
            raise ProtocolError("the arguments of an object are not a tuple")
        value = maker(*args)
        if state is not None:
            _set_state(value, state)
        if items is not None:
            if type(items) is not list:
                raise ProtocolError("the items of an object are not a list")
            value.extend(items)
        if pairs is not None:
            if type(pairs) is not dict:
                raise ProtocolError("the items of an object are not a dict")
            for key, each in pairs.items():
                value[key] = each
        return value


def _reduces_itself(cls: type) -> bool:
    return any(not {"__reduce__", "__reduce_ex__"}.isdisjoint(vars(base)) for base in cls.__mro__[:-1])


def _maker(cls: type) -> Callable[..., Any]:
    if issubclass(cls, Enum):
        return lambda name: cls.__members__[name]
    if _reduces_itself(cls):
        make: Callable[..., Any] = cls
    else:
        make = _Bare(cls)
    for base in _PLAIN_BASES:
        if issubclass(cls, base) and (cls.__new__ is base.__new__):
            return _from_base(make, base)
    return make


class _Bare:
    """Makes an object without a call of its `__init__`, as pickle does."""

    def __init__(self, cls: type) -> None:
        self._cls = cls

    def __call__(self, *args: Any) -> Any:
        new: Any = self._cls.__new__
        if args and new is object.__new__:
            raise ProtocolError(f"a {self._cls.__qualname__} takes no arguments")
        return new(self._cls, *args)


def _from_base(make: Callable[..., Any], base: type) -> Callable[..., Any]:
    """These take more than their own kind: `bytes(10**9)` is a gigabyte, `int("9" * 10**6)` takes seconds."""

    def from_base(*args: Any) -> Any:
        if any(type(each) is not base and not (base is bytearray and type(each) is bytes) for each in args):
            raise ProtocolError(f"an object that is a {base.__name__} is made of one only")
        return make(*args)

    return from_base


def _set_state(value: Any, state: Any) -> None:
    """Sets the state as pickle does, on a new object."""
    if isinstance(value, Enum):
        raise ProtocolError("a member of an enumeration is shared; it takes no state")
    own = getattr(value, "__setstate__", None)
    if own is not None:
        own(state)
        return
    in_slots = None
    if type(state) is tuple and len(state) == 2:
        state, in_slots = state
    if state is not None:
        if type(state) is not dict or not all(type(key) is str for key in state):
            raise ProtocolError("the state of an object is not a dict of its attributes")
        value.__dict__.update(state)
    if in_slots is not None:
        names = copyreg._slotnames(type(value))  # type: ignore[attr-defined]
        if type(in_slots) is not dict or not set(names).issuperset(in_slots):
            raise ProtocolError(f"the state of an object has slots that {type(value).__qualname__} has not")
        for name, each in in_slots.items():
            object.__setattr__(value, name, each)
