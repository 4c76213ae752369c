"""Copies a byte array and a list of numbers out of a pickle without ever unpickling it.

Unpickling runs whatever callables a file names. Here the opcodes are only read: a small stack
machine understands those that build texts, numbers, lists, tuples and dictionaries, keeps a call as
a note of what was asked for, and refuses everything else. Nothing is imported, called or built.
"""

from __future__ import annotations

import pickletools
import struct
from dataclasses import dataclass
from typing import Any, cast

from nispa.errors import DataError
from nispa.files import wording

ARRAY_CALLS = {
    "numpy.core.multiarray _reconstruct",
    "numpy._core.multiarray _reconstruct",
    "numpy ndarray",
    "numpy dtype",
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
NUMBERS_AND_TEXTS = {
    "BININT",
    "BININT1",
    "BININT2",
    "INT",
    "LONG1",
    "BINSTRING",
    "SHORT_BINSTRING",
    "STRING",
    "BINUNICODE",
}


@dataclass(frozen=True)
class _Name:
    """A callable that the pickle names; never looked up."""

    text: str


@dataclass
class _Call:
    """A call that the pickle asks for, and the state it wants set; never carried out."""

    name: str
    args: tuple[Any, ...]
    state: Any = None


class _Mark:
    """The start of a list of values on the stack."""


class _Refused(Exception):  # noqa: N818
    """The pickle holds something that a batch of CIFAR does not."""


def read_batch(
    content: bytes, label_key: str, where: str
) -> tuple[tuple[int, ...], bytes, list[int]]:
    """The array ``data`` and the labels of one batch file of CIFAR's Python version.

    Args:
        content: The pickle, protocol 2 or lower as Python 2 wrote it.
        label_key: ``"labels"`` or ``"fine_labels"``.
        where: What to call it in an error.

    Returns:
        The shape of the array, its bytes in C order, and the labels.

    Raises:
        DataError: It is damaged, or holds anything else than a batch.
    """
    try:
        batch = _walk(content)
        if not isinstance(batch, dict):
            raise _Refused("it is not a dictionary")
        for key in ("data", label_key):
            if key not in batch:
                raise _Refused(f"it has no '{key}'")
        shape, values = _array(batch["data"])
        labels = batch[label_key]
        if not isinstance(labels, list) or not all(type(label) is int for label in labels):
            raise _Refused(f"its '{label_key}' is not a list of whole numbers")
        if any(not -(2**31) <= label < 2**31 for label in labels):
            raise _Refused(f"its '{label_key}' holds a number out of range")
    except (
        _Refused,
        ValueError,
        IndexError,
        KeyError,
        TypeError,
        struct.error,
        MemoryError,
        Warning,
    ) as error:
        raise DataError(f"{where}: not a readable batch of CIFAR ({wording(error)})") from None
    return shape, values, labels


def _array(found: Any) -> tuple[tuple[int, ...], bytes]:
    """Shape and bytes of what would be rebuilt as an array of unsigned bytes."""
    if not isinstance(found, _Call) or not found.name.endswith(" _reconstruct"):
        raise _Refused("its 'data' is not an array")
    state = found.state
    if not isinstance(state, tuple) or len(state) != 5:
        raise _Refused("its 'data' has no content")
    _, shape, dtype, fortran, values = state
    if not isinstance(dtype, _Call) or dtype.name != "numpy dtype" or dtype.args[:1] != ("u1",):
        raise _Refused("its 'data' is not of unsigned bytes")
    if fortran or not isinstance(values, str) or not isinstance(shape, tuple):
        raise _Refused("its 'data' is not stored row by row")
    size = 1
    for side in shape:
        if type(side) is not int or side < 0:
            raise _Refused("its 'data' has no valid shape")
        size *= side
    if size != len(values):
        raise _Refused(f"its 'data' has {len(values)} bytes, expected {size}")
    return shape, values.encode("latin-1")  # pickletools shows the bytes of Python 2 as Latin-1


def _walk(content: bytes) -> Any:
    """What the pickle describes, with calls as notes."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for opcode, found, _ in pickletools.genops(content):
        name, argument = opcode.name, cast(Any, found)
        if name == "STOP":
            break
        if name == "PROTO":
            if argument > 2:
                raise _Refused(f"pickle protocol {argument}, expected 2")
        elif name in NUMBERS_AND_TEXTS:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "GLOBAL":
            if argument not in ARRAY_CALLS:
                raise _Refused(f"it asks for {argument!r}")
            stack.append(_Name(argument))
        elif name == "MARK":
            stack.append(_Mark())
        elif name in _STEPS:
            _STEPS[name](stack)
        else:
            raise _Refused(f"unexpected opcode {name}")
    (result,) = stack
    return result


def _above_mark(stack: list[Any]) -> list[Any]:
    taken = []
    while not isinstance(stack[-1], _Mark):
        taken.append(stack.pop())
    stack.pop()
    return taken[::-1]


def _empty(kind: type[Any]) -> Any:
    return lambda stack: stack.append(kind())


def _tuple_of(count: int) -> Any:
    def step(stack: list[Any]) -> None:
        if len(stack) < count:
            raise _Refused("a tuple of more values than there are")
        stack[-count:] = [tuple(stack[-count:])]

    return step


def _append(stack: list[Any], values: list[Any]) -> None:
    if not isinstance(stack[-1], list):
        raise _Refused("a value is added to something that is no list")
    stack[-1].extend(values)


def _set(stack: list[Any], values: list[Any]) -> None:
    if not isinstance(stack[-1], dict) or len(values) % 2:
        raise _Refused("an item is set on something that is no dictionary")
    for key, value in zip(values[::2], values[1::2], strict=True):
        if not isinstance(key, str):
            raise _Refused("a key is not a text")
        stack[-1][key] = value


def _append_one(stack: list[Any]) -> None:
    value = stack.pop()
    _append(stack, [value])


def _set_one(stack: list[Any]) -> None:
    value, key = stack.pop(), stack.pop()
    _set(stack, [key, value])


def _append_many(stack: list[Any]) -> None:
    values = _above_mark(stack)
    _append(stack, values)


def _set_many(stack: list[Any]) -> None:
    values = _above_mark(stack)
    _set(stack, values)


def _marked(kind: Any) -> Any:
    def step(stack: list[Any]) -> None:
        values = _above_mark(stack)
        stack.append(kind(values))

    return step


def _marked_dict(values: list[Any]) -> dict[str, Any]:
    holder: list[Any] = [{}]
    _set(holder, values)
    made: dict[str, Any] = holder[0]
    return made


def _note_call(stack: list[Any]) -> None:
    args, name = stack.pop(), stack.pop()
    if not isinstance(name, _Name) or not isinstance(args, tuple):
        raise _Refused("a call of something that is no array")
    stack.append(_Call(name.text, args))


def _note_state(stack: list[Any]) -> None:
    state = stack.pop()
    if not isinstance(stack[-1], _Call):
        raise _Refused("a state set on something that is no array")
    stack[-1].state = state


_STEPS: dict[str, Any] = {
    "EMPTY_DICT": _empty(dict),
    "EMPTY_LIST": _empty(list),
    "EMPTY_TUPLE": _empty(tuple),
    "TUPLE": _marked(tuple),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "LIST": _marked(list),
    "DICT": _marked(_marked_dict),
    "APPEND": _append_one,
    "APPENDS": _append_many,
    "SETITEM": _set_one,
    "SETITEMS": _set_many,
    "REDUCE": _note_call,
    "BUILD": _note_state,
}
