"""Reads the pickles inside PyTorch's files, without the means to do any harm.

A pickle is a program for a small machine with a stack and a memo. Most instructions push a number or a string, or
collect what lies on the stack in a tuple, list or dict. Two are the dangerous ones: GLOBAL names any object of any
module, which Python's own reader imports, and REDUCE calls it with any arguments.

The machine here imports nothing. GLOBAL looks the name up in a table that the caller passes, in which the few
names of a state dict stand for functions of ours, and REDUCE calls these functions and nothing else. A name that
is not in the table ends the reading, and the error lists the name.

The work is bounded too: the number of instructions, the length of the pickle, and no instruction takes more
memory than its own length in the file (in Python's reader, four bytes that name a place in the memo can ask for
64 GB). As the memo makes it cheap to name a long list again and again, a call costs as many instructions as its
arguments are long, and keys are short.
"""

import io
import pickletools
import struct
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tinyseg.interop.errors import WeightsError

MAX_BYTES = 32 << 20
"""Of a pickle. The one of ResNet-101, with 626 tensors, has 60 thousand."""

MAX_INSTRUCTIONS = 1_000_000
"""About 30 belong to a tensor."""

MAX_NAME = 1000
"""Characters in the name of a tensor."""

# fmt: off
PUSH_ARGUMENT = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8",
}
# fmt: on
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
NO_EFFECT = ("PROTO", "FRAME")

MARK = object()

ADVICE = (
    "save the weights alone, torch.save(net.state_dict(), path), or export them as safetensors, where you trust "
    "the file enough to load it with PyTorch"
)


class StateDict(dict):
    """What an OrderedDict in a pickle becomes. `metadata` is what PyTorch attaches to a module's state dict."""

    metadata: Any = None


class Stub:
    """A name in a pickle that stands for something of ours; only one with a `call` can be called."""

    def __init__(self, value: Any = None, *, call: Callable[..., Any] | None = None):
        self.value = value
        self.call = call


def ordered_dict(pairs: Any = ()) -> StateDict:
    """collections.OrderedDict(pairs)."""
    result = StateDict()
    for key, value in _typed(pairs, list, tuple):
        result[_key(key)] = value
    return result


def read(
    stream: io.BytesIO,
    table: Mapping[tuple[str, str], Stub],
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """Run the pickle that starts at the stream's position, and leave the stream behind it.

    table        what each (module, name) stands for
    persistent   turns a persistent id, PyTorch's reference to a storage, into an object

    Raises `WeightsError` for a damaged pickle, and for one that asks for anything else.
    """
    machine = _Machine(table, persistent)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickletools, about odd escapes in damaged strings
            return machine.run(pickletools.genops(stream))
    except WeightsError:
        raise
    except (ValueError, TypeError, LookupError, OverflowError, struct.error) as error:
        raise WeightsError("its pickle is damaged") from error


class _Machine:
    def __init__(self, table: Mapping[tuple[str, str], Stub], persistent: Callable[[Any], Any] | None):
        self.table = table
        self.persistent = persistent
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.spent = 0  # instructions, and lengths of arguments

    def run(self, instructions: Iterator[tuple[Any, Any, Any]]) -> Any:
        for opcode, argument, _ in instructions:
            self._spend(1)
            if opcode.name == "STOP":
                return self._take(1)[0]
            if opcode.name == "GLOBAL":
                module, _, name = argument.partition(" ")
                if (module, name) not in self.table:
                    raise _refusal([(module, name), *self._also_refused(instructions)])
                self.stack.append(self.table[module, name])
            else:
                self.step(opcode.name, argument)
        raise WeightsError("its pickle has no end")

    def _also_refused(self, instructions: Iterator[tuple[Any, Any, Any]]) -> Iterator[tuple[str, str]]:
        """The other names outside the table, for the error message; nothing is run any more."""
        try:
            for _, (opcode, argument, _) in zip(range(MAX_INSTRUCTIONS), instructions, strict=False):
                if opcode.name == "GLOBAL":
                    module, _, name = argument.partition(" ")
                    if (module, name) not in self.table:
                        yield module, name
        except (ValueError, OverflowError, struct.error):
            return

    def _spend(self, instructions: int) -> None:
        self.spent += instructions
        if self.spent > MAX_INSTRUCTIONS:
            raise WeightsError(f"its pickle has more than {MAX_INSTRUCTIONS:,} instructions")

    def step(self, name: str, argument: Any) -> None:
        stack, memo = self.stack, self.memo
        if name in PUSH_ARGUMENT:
            stack.append(argument)
            return
        if name in CONSTANTS:
            stack.append(CONSTANTS[name])
            return
        if name in TUPLES:
            stack.append(self._take(TUPLES[name]))
            return
        match name:
            case "MARK":
                stack.append(MARK)
            case "TUPLE":
                stack.append(tuple(self._take_to_mark()))
            case "LIST":
                stack.append(self._take_to_mark())
            case "EMPTY_LIST":
                stack.append([])
            case "APPEND":
                (value,) = self._take(1)
                _typed(stack[-1], list).append(value)
            case "APPENDS":
                values = self._take_to_mark()
                _typed(stack[-1], list).extend(values)
            case "EMPTY_DICT":
                stack.append({})
            case "DICT":
                values = self._take_to_mark()
                stack.append({_key(key): value for key, value in _pairs(values)})
            case "SETITEM":
                key, value = self._take(2)
                _typed(stack[-1], dict, StateDict)[_key(key)] = value
            case "SETITEMS":
                values = self._take_to_mark()
                _typed(stack[-1], dict, StateDict).update((_key(key), value) for key, value in _pairs(values))
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                stack.append(memo[argument])
            case "POP":
                stack.pop()
            case "DUP":
                stack.append(stack[-1])
            case "STACK_GLOBAL":
                path = self._take(2)
                module, attribute = (_typed(part, str) for part in path)
                if (module, attribute) not in self.table:
                    raise _refusal([(module, attribute)])
                stack.append(self.table[module, attribute])
            case "REDUCE":
                function, arguments = self._take(2)
                call = _typed(function, Stub).call
                if call is None:
                    raise WeightsError("its pickle calls something that is no function")
                self._spend(_length(_typed(arguments, tuple)) + sum(map(_length, arguments)))
                stack.append(call(*arguments))
            case "BUILD":  # sets attributes: a state dict carries its modules' versions this way
                (attributes,) = self._take(1)
                target = _typed(stack[-1], StateDict)
                target.metadata = _typed(attributes, dict, StateDict).get("_metadata")
            case "BINPERSID":
                (identity,) = self._take(1)
                if self.persistent is None:
                    raise WeightsError("its pickle refers to a storage where there can be none")
                stack.append(self.persistent(identity))
            case _:
                if name not in NO_EFFECT:
                    raise WeightsError(
                        f"refused: its pickle has the instruction {name}, which no state dict needs"
                    )

    def _take(self, number: int) -> tuple[Any, ...]:
        """The upper objects of the stack, lowest first."""
        taken = tuple(self.stack.pop() for _ in range(number))[::-1]
        if any(value is MARK for value in taken):
            raise ValueError("a mark where an object was expected")
        return taken

    def _take_to_mark(self) -> list[Any]:
        taken = []
        while (value := self.stack.pop()) is not MARK:
            taken.append(value)
        return taken[::-1]


def _typed(value: Any, *types: type) -> Any:
    """The value, if it has exactly one of these types."""
    if type(value) not in types:
        raise TypeError(f"expected {types[0].__name__}")
    return value


def _length(value: Any) -> int:
    return len(value) if type(value) in (list, tuple) else 0


def _key(key: Any) -> str | int:
    """Dict keys are strings or numbers, and short: the hash of nested tuples can take for ever."""
    if (len(key) > MAX_NAME) if type(key) is str else (abs(_typed(key, int)) >= 2**63):
        raise ValueError("a key of such a length")
    return key


def _pairs(values: list[Any]) -> Iterator[tuple[Any, Any]]:
    return zip(values[::2], values[1::2], strict=True)


def _refusal(names: list[tuple[str, str]]) -> WeightsError:
    shown = list(dict.fromkeys(f"{module}.{name}" for module, name in names))
    listing = ", ".join(_printable(name) for name in shown[:8]) + (", ..." if len(shown) > 8 else "")
    objects = "the object" if len(shown) == 1 else "the objects"
    return WeightsError(
        f"refused: besides tensors its pickle holds {objects} {listing}, and making these could run any code; "
        f"{ADVICE}"
    )


def _printable(name: str) -> str:
    """A name of a file that may be hostile, safe for a terminal and not too long."""
    shown = "".join(character if character.isprintable() else "?" for character in name[:100])
    return shown + ("..." if len(name) > 100 else "")
