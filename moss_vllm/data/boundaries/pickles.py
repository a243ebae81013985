"""Read a pickle of plain values as data: nothing in the file is called, and the memory it takes is bounded.

The ground truth of Kinetics-GEBD and TAPOS is distributed as pickles. A machine of this file's own reads
their dicts, lists, texts and numbers. It knows two globals, those by which NumPy writes one float64: they
become marks that hold no code. A third ends the reading with its name.

Reference: the opcodes of Python's pickletools, protocols 2 to 5 as Python 3 writes them.
"""

import pickletools
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moss_vllm.data.rows import BadRow

MAX_PICKLE_BYTES = 256 * 2**20  # the raw marks of Kinetics-GEBD, each with its words, are some 50 MB
MAX_STEPS = 20_000_000  # of the machine; each makes one object at most, so these take no more than about 3 GB
MAX_DEPTH = 16  # lists and dicts within each other
SCALAR, DTYPE = "numpy.core.multiarray.scalar", "numpy.dtype"
GLOBALS = {SCALAR: SCALAR, "numpy._core.multiarray.scalar": SCALAR, DTYPE: DTYPE}  # the second is NumPy 2's
OPCODES = {ord(one.code): one.name for one in pickletools.opcodes}
TAKE_ANEW = "take the file from its publisher, or write its plain values as json"


class _Refused(Exception):
    """What is wrong with the file."""


class _Mark:
    """Where a list of arguments begins on the stack."""


@dataclass
class _Name:
    """A global of the file, never looked up."""

    name: str


class _Dtype:
    """The type float64; its byte order is in the state that the file sets next."""


MARK = _Mark()


def read_pickle(path: Path) -> Any:
    """The dicts, lists, tuples, texts, bytes, numbers, booleans and None of a pickle.

    NumPy's float64 scalars become floats.

    Raises: BadRow with the file for one that cannot be read, is over MAX_PICKLE_BYTES, is cut short, names
    another global, or needs more steps or depth than the limits.
    """
    try:
        size = path.stat().st_size
        if size > MAX_PICKLE_BYTES:
            raise _Refused(f"has {size:,} bytes; at most {MAX_PICKLE_BYTES:,} are read")
        data = path.read_bytes()
        if not data:
            raise _Refused("is empty")
        if data[:1] != b"\x80":
            raise _Refused("is no pickle of protocol 2 to 5")
        found = _Machine(data).run()
        _check_tree(found, len(data))
    except OSError as error:
        raise BadRow(str(path), "file", f"cannot be read ({error.strerror})", "check the path") from None
    except _Refused as error:
        raise BadRow(str(path), "file", str(error), TAKE_ANEW) from None
    return found


@dataclass
class _Machine:
    """The stack machine of a pickle, for the opcodes that plain values need."""

    data: bytes
    place: int = 0
    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def run(self) -> Any:
        data, stack, memo = self.data, self.stack, self.memo
        code = -1
        try:
            for _ in range(MAX_STEPS):
                code = data[self.place]
                self.place += 1
                if code == MEMOIZE:  # this one and the next are two thirds of all, so they save the call
                    memo[len(memo)] = stack[-1]
                    continue
                if code == GET:
                    stack.append(memo[data[self.place]])
                    self.place += 1
                    continue
                if code == STOP:
                    if len(stack) != 1:
                        raise _Refused("does not end with one value")
                    return stack[0]
                step = STEPS.get(code)
                if step is None:
                    raise _Refused(_describe(code, self.place - 1))
                step(self)
        except (IndexError, struct.error):
            raise _Refused(f"ends or breaks off at byte {self.place:,} of {len(self.data):,}") from None
        except (AttributeError, KeyError, TypeError, ValueError):
            name = OPCODES[code]
            raise _Refused(f"is damaged: {name} at byte {self.place:,} has nothing to work on") from None
        raise _Refused(f"needs more than {MAX_STEPS:,} steps, so it is no annotation")

    # ---- reading

    def take(self, count: int) -> bytes:
        """The next bytes; a length over the rest of the file reserves no memory."""
        end = self.place + count
        if end > len(self.data):
            raise IndexError
        part, self.place = self.data[self.place : end], end
        return part

    def number(self, form: str) -> Any:
        (value,) = struct.unpack_from(form, self.data, self.place)
        self.place += struct.calcsize(form)
        return value

    def text(self, form: str) -> None:
        self.stack.append(str(self.take(self.number(form)), "utf-8", "strict"))

    # ---- containers

    def since_mark(self) -> list[Any]:
        """What lies above the last mark, which goes too."""
        place = len(self.stack) - 1
        while self.stack[place] is not MARK:
            place -= 1
            if place < 0:
                raise IndexError
        found = self.stack[place + 1 :]
        del self.stack[place:]
        return found

    def fill_tuple(self, count: int) -> None:
        found = tuple(self.stack[-count:])
        if len(found) < count:
            raise IndexError
        self.stack[-count:] = [found]

    def fill_list(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise TypeError
        target.extend(values)

    def fill_dict(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(pairs) % 2:
            raise TypeError
        for key in pairs[::2]:
            if type(key) is not str:
                raise _Refused(f"has a {type(key).__name__} as the key of a dict, where a text is needed")
        target.update(zip(pairs[::2], pairs[1::2], strict=True))

    # ---- the two globals

    def name(self, module: Any, name: Any) -> None:
        full = f"{_short(module)}.{_short(name)}"
        if full not in GLOBALS:
            raise _Refused(f"names {full!r}, which is code and not data; nothing of it was run")
        self.stack.append(_Name(GLOBALS[full]))

    def reduce(self) -> None:
        arguments, target = self.stack.pop(), self.stack.pop()
        if not isinstance(target, _Name) or not isinstance(arguments, tuple):
            raise TypeError
        self.stack.append(_dtype(arguments) if target.name == DTYPE else _scalar(arguments))

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if not isinstance(target, _Dtype) or not isinstance(state, tuple):
            raise TypeError
        if state[1] not in ("<", "="):
            raise _Refused(f"has NumPy numbers of byte order {_short(state[1])!r}, where '<' is needed")


def _dtype(arguments: tuple[Any, ...]) -> _Dtype:
    if arguments[:1] != ("f8",):
        raise _Refused(f"has NumPy numbers of type {_short(arguments[0])!r}, where 'f8' is needed")
    return _Dtype()


def _scalar(arguments: tuple[Any, ...]) -> float:
    dtype, content = arguments
    if not isinstance(dtype, _Dtype) or type(content) is not bytes or len(content) != 8:
        raise TypeError
    value: float = struct.unpack("<d", content)[0]
    return value


def _short(value: Any) -> str:
    """A text of the file for a message, or its type: other values may be too large or too deep to print."""
    return value[:60] if isinstance(value, str) else type(value).__name__


def _describe(code: int, place: int) -> str:
    what = f"the opcode {OPCODES[code]}" if code in OPCODES else f"the byte {code}"
    return f"has {what} at byte {place:,}, which dicts, lists, texts and numbers do not need"


def _long(machine: _Machine) -> None:
    machine.stack.append(int.from_bytes(machine.take(machine.number("<B")), "little", signed=True))


def _named_on_stack(machine: _Machine) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    machine.name(module, name)


def _named_in_lines(machine: _Machine) -> None:
    lines = []
    for _ in range(2):
        end = machine.data.index(b"\n", machine.place, machine.place + 200)
        lines.append(machine.take(end - machine.place).decode())
        machine.place += 1
    machine.name(*lines)


def _push(value: Callable[[_Machine], Any]) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(value(machine))


def _store(form: str) -> Callable[[_Machine], None]:
    def step(machine: _Machine) -> None:
        machine.memo[machine.number(form)] = machine.stack[-1]

    return step


STOP, MEMOIZE, GET = b".\x94h"
STEPS: dict[int, Callable[[_Machine], Any]] = {
    code[0]: step
    for code, step in {
        b"\x80": lambda machine: machine.take(1),  # the protocol
        b"\x95": lambda machine: machine.take(8),  # how long a frame is; all of the file is in memory
        b"(": _push(lambda machine: MARK),
        b"N": _push(lambda machine: None),
        b"\x88": _push(lambda machine: True),
        b"\x89": _push(lambda machine: False),
        b"K": _push(lambda machine: machine.number("<B")),
        b"M": _push(lambda machine: machine.number("<H")),
        b"J": _push(lambda machine: machine.number("<i")),
        b"\x8a": _long,
        b"G": _push(lambda machine: machine.number(">d")),
        b"\x8c": lambda machine: machine.text("<B"),
        b"X": lambda machine: machine.text("<I"),
        b"\x8d": lambda machine: machine.text("<Q"),
        b"C": _push(lambda machine: machine.take(machine.number("<B"))),
        b"B": _push(lambda machine: machine.take(machine.number("<I"))),
        b"]": _push(lambda machine: []),
        b"}": _push(lambda machine: {}),
        b")": _push(lambda machine: ()),
        b"a": lambda machine: machine.fill_list([machine.stack.pop()]),
        b"e": lambda machine: machine.fill_list(machine.since_mark()),
        b"s": lambda machine: machine.fill_dict([machine.stack.pop(), machine.stack.pop()][::-1]),
        b"u": lambda machine: machine.fill_dict(machine.since_mark()),
        b"t": _push(lambda machine: tuple(machine.since_mark())),
        b"\x85": lambda machine: machine.fill_tuple(1),
        b"\x86": lambda machine: machine.fill_tuple(2),
        b"\x87": lambda machine: machine.fill_tuple(3),
        b"q": _store("<B"),
        b"r": _store("<I"),
        b"j": _push(lambda machine: machine.memo[machine.number("<I")]),
        b"c": _named_in_lines,
        b"\x93": _named_on_stack,
        b"R": _Machine.reduce,
        b"b": _Machine.build,
    }.items()
}


def _check_tree(found: Any, budget: int) -> None:
    """Refuse values that hold themselves, or one another so often that walking over them would not end.

    `budget` is the size of the file: without repetition a value takes one byte of it at least.
    """
    level, depth = [found], 0
    while level:
        if depth == MAX_DEPTH:
            raise _Refused(f"is nested more than {MAX_DEPTH} deep")
        budget -= len(level)
        if budget < 0:
            raise _Refused("repeats its own parts so often that it would not fit in memory")
        below: list[Any] = []
        for value in level:
            if isinstance(value, list | tuple):
                below.extend(value)
            elif isinstance(value, dict):
                below.extend(value.values())
            elif isinstance(value, _Mark | _Name | _Dtype):
                raise _Refused("holds a type where a value is needed")
            if len(below) > budget:
                break
        level, depth = below, depth + 1
