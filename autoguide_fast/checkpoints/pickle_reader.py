"""Reads a pickle as data: plain values, tensors and the recorded state of objects, never code.

Python's own unpickler calls what a file names. This one calls nothing: it walks the opcodes itself,
keeps names of an allow-list as symbols, and knows for each of them which data it stands for. Bytes
stay in the file until someone asks for them, so that gigabytes of weights are read one by one. What
is not on the list, or would take more memory than the file warrants, is refused.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple, TypeVar

MOST_OPCODES = 500_000
LEAST_BUDGET = 8 << 20  # bytes that reading may take, besides as many as the file has
MOST_TEXT = 64 << 20  # bytes of one string


Kind = TypeVar("Kind")
Method = Callable[["PickleReader"], None]
Rebuild = Callable[[tuple], Any]  # from the arguments that a file gives to the data


class Refused(Exception):  # noqa: N818
    """What was found that is not read: the end of a sentence that begins with `got`."""


class Span(NamedTuple):
    """Bytes of an open file that were not read yet."""

    file: BinaryIO
    start: int
    length: int

    def read(self, offset: int = 0, length: int | None = None) -> bytes:
        """These bytes, or `length` of them from `offset` on."""
        length = self.length - offset if length is None else length
        if offset < 0 or length < 0 or offset + length > self.length:
            raise Refused(f"{length} bytes asked of {self.length}")
        self.file.seek(self.start + offset)
        data = self.file.read(length)
        if len(data) != length:
            raise Refused("a file that became shorter while it was read")
        return data


class Symbol(NamedTuple):
    """A name of the allow-list, `module.name`."""

    module: str
    name: str

    def __str__(self) -> str:
        return shown(f"{self.module}.{self.name}")


@dataclass(eq=False)
class Recorded:
    """An object as its pickle records it: the name of its class, and its attributes."""

    class_name: str
    state: dict[str, Any] = field(default_factory=dict)


def shown(value: object) -> str:
    """A value of a file as a sentence can show it: short, on one line."""
    if isinstance(value, str):
        text = value[:100]
        text = text if text.isascii() and text.isprintable() else ascii(text)
    elif value is None or isinstance(value, (bool, float, Symbol)):
        text = str(value)
    elif isinstance(value, int):
        text = str(value) if abs(value) < 10**30 else "a huge number"
    elif isinstance(value, (list, tuple)) and len(value) <= 8:
        scalars = (bool, int, float, str, type(None))
        parts = (shown(v) if isinstance(v, scalars) else "..." for v in value)
        text = f"[{', '.join(parts)}]"
    elif isinstance(value, Recorded):
        text = f"an object of class {shown(value.class_name)}"
    else:
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


class Budget:
    """Counts what reading takes, and stops it before that gets out of proportion to the file."""

    def __init__(self, size: int) -> None:
        self.left = LEAST_BUDGET + size
        self.opcodes = MOST_OPCODES

    def spend(self, count: int) -> None:
        """Set `count` bytes aside."""
        self.left -= count
        if self.left < 0:
            raise Refused("more objects than its size warrants")

    def step(self, count: int = 1) -> None:
        """Count an opcode, or what takes as long as `count` of them."""
        self.opcodes -= count
        if self.opcodes < 0:
            raise Refused(f"more than {MOST_OPCODES} opcodes")


_OPCODES: dict[int, Method] = {}
_MARK = object()


def _opcode(code: int) -> Callable[[Method], Method]:
    def add(method: Method) -> Method:
        _OPCODES[code] = method
        return method

    return add


class PickleReader:
    """Walks one pickle in the bytes `start` to `end` of an open file.

    Args:
        file: Opened for reading bytes, without a buffer of its own being needed.
        start, end: Where the pickle may lie.
        symbols: By `(module, name)`, what rebuilds the data that a call of that name
            stands for: a function of the tuple of arguments. It returns the data, and raises
            `Refused` for arguments that it does not know. What else a file names is refused.
        set_state: Called with an object that one of `symbols` rebuilt and the state that the file
            gives it.
        budget: Shared by all pickles of one file.
        persistent: What a persistent id stands for, a function of it; None refuses them.
    """

    def __init__(
        self,
        file: BinaryIO,
        start: int,
        end: int,
        symbols: Mapping[tuple[str, str], Rebuild | None],
        set_state: Callable[[Any, Any], None],
        budget: Budget,
        persistent: Callable[[Any], Any] | None = None,
    ) -> None:
        self.file, self.at, self.end = file, start, end
        self.symbols, self.set_state, self.budget = symbols, set_state, budget
        self.persistent = persistent
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def read(self) -> Any:
        """The value of the pickle; `self.at` is then where it ends."""
        self.file.seek(self.at)
        first = self._take(2)
        if first[0] != 0x80 or not 2 <= first[1] <= 5:
            raise Refused("what does not begin as a pickle of protocol 2 to 5")
        while True:
            self.budget.step()
            code = self._take(1)[0]
            if code == 0x2E:  # STOP
                break
            method = _OPCODES.get(code)
            if method is None:
                raise Refused(f"the opcode {_named(code)}")
            method(self)
        value = self._pop()
        if self.stack:
            raise Refused("values that belong to nothing")
        if value is _MARK:
            raise Refused("no value")
        return value

    # The bytes.

    def _take(self, count: int) -> bytes:
        if count > self.end - self.at:
            raise Refused("one that ends too early")
        data = self.file.read(count)
        if len(data) != count:
            raise Refused("one that ends too early")
        self.at += count
        return data

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _line(self) -> str:
        data = bytearray()
        while (byte := self._take(1)) != b"\n":
            data += byte
            if len(data) > 300:
                raise Refused("a name of more than 300 characters")
        return _text(bytes(data))

    def _bytes(self, length: int) -> None:
        if length > self.end - self.at:
            raise Refused("one that ends too early")
        self.budget.spend(120)
        self.stack.append(Span(self.file, self.at, length))
        self.at += length
        self.file.seek(self.at)

    def _string(self, length: int) -> None:
        if length > MOST_TEXT:
            raise Refused(f"a text of {length} bytes")
        # At worst four bytes a character, beside the bytes themselves.
        self.budget.spend(80 + (length if length < 1 << 16 else 5 * length))
        self._push(_text(self._take(length)))

    # The stack.

    def _push(self, value: object, cost: int = 40) -> None:
        self.budget.spend(cost)
        self.stack.append(value)

    def _pop(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise Refused("an opcode without its values")
        return self.stack.pop()

    def _top(self, kind: type[Kind]) -> Kind:
        if not self.stack or type(self.stack[-1]) is not kind:
            raise Refused(f"an opcode without its {kind.__name__}")
        return self.stack[-1]

    def _marked(self) -> list[Any]:
        for start in range(len(self.stack) - 1, -1, -1):
            if self.stack[start] is _MARK:
                values = self.stack[start + 1 :]
                del self.stack[start:]
                return values
        raise Refused("an opcode without its mark")

    def _tuple(self, count: int) -> None:
        values = [self._pop() for _ in range(count)]
        self._push(tuple(reversed(values)), 60 + 8 * count)

    def _set_items(self, values: Sequence[Any]) -> None:
        if len(values) % 2:
            raise Refused("a key without a value")
        into = self._top(dict)
        self.budget.spend(60 * len(values))
        for key, value in zip(values[::2], values[1::2], strict=True):
            into[_key(key)] = value

    def _remember(self, index: int) -> None:
        if not self.stack or self.stack[-1] is _MARK:
            raise Refused("an opcode without its values")
        self.budget.spend(120)
        self.memo[index] = self.stack[-1]

    def _recall(self, index: int) -> None:
        if index not in self.memo:
            raise Refused("a reference to nothing")
        self._push(self.memo[index], 8)

    def _symbol(self, module: object, name: object) -> None:
        if type(module) is not str or type(name) is not str:
            raise Refused("a global whose name is no text")
        symbol = Symbol(module, name)
        if (module, name) not in self.symbols:
            raise Refused(f"the global {symbol}")
        self._push(symbol, 80)

    def _call(self, symbol: object, arguments: object) -> None:
        if type(symbol) is not Symbol or type(arguments) is not tuple:
            raise Refused("a call of what is no global")
        rebuild = self.symbols[symbol.module, symbol.name]
        if rebuild is None:
            raise Refused(f"a call of the global {symbol}")
        self._push(rebuild(arguments), 240)

    # The opcodes.

    @_opcode(0x95)  # FRAME: nothing but a hint
    def _frame(self) -> None:
        if self._number("<Q") > self.end - self.at:
            raise Refused("one that ends too early")

    @_opcode(ord("("))
    def _mark(self) -> None:
        self._push(_MARK, 8)

    @_opcode(ord("0"))
    def _drop(self) -> None:
        if not self.stack:
            raise Refused("an opcode without its values")
        self.stack.pop()

    @_opcode(ord("1"))
    def _drop_marked(self) -> None:
        self._marked()

    @_opcode(ord("2"))
    def _duplicate(self) -> None:
        value = self._pop()
        self.stack.append(value)
        self._push(value, 8)

    @_opcode(ord("N"))
    def _none(self) -> None:
        self._push(None, 8)

    @_opcode(0x88)
    def _true(self) -> None:
        self._push(True, 8)

    @_opcode(0x89)
    def _false(self) -> None:
        self._push(False, 8)

    @_opcode(ord("K"))
    def _integer1(self) -> None:
        self._push(self._number("<B"))

    @_opcode(ord("M"))
    def _integer2(self) -> None:
        self._push(self._number("<H"))

    @_opcode(ord("J"))
    def _integer4(self) -> None:
        self._push(self._number("<i"))

    @_opcode(0x8A)  # LONG1
    def _long(self) -> None:
        length = self._number("<B")
        self._push(int.from_bytes(self._take(length), "little", signed=True), 40 + length)

    @_opcode(ord("G"))
    def _float(self) -> None:
        self._push(self._number(">d"))

    @_opcode(0x8C)
    def _string1(self) -> None:
        self._string(self._number("<B"))

    @_opcode(ord("X"))
    def _string4(self) -> None:
        self._string(self._number("<I"))

    @_opcode(0x8D)
    def _string8(self) -> None:
        self._string(self._number("<Q"))

    @_opcode(ord("C"))
    def _bytes1(self) -> None:
        self._bytes(self._number("<B"))

    @_opcode(ord("B"))
    def _bytes4(self) -> None:
        self._bytes(self._number("<I"))

    @_opcode(0x8E)
    def _bytes8(self) -> None:
        self._bytes(self._number("<Q"))

    @_opcode(0x96)
    def _bytearray8(self) -> None:
        self._bytes(self._number("<Q"))

    @_opcode(ord("]"))
    def _empty_list(self) -> None:
        self._push([], 80)

    @_opcode(ord("}"))
    def _empty_dict(self) -> None:
        self._push({}, 240)

    @_opcode(0x8F)
    def _empty_set(self) -> None:
        self._push(set(), 240)

    @_opcode(ord(")"))
    def _tuple0(self) -> None:
        self._tuple(0)

    @_opcode(0x85)
    def _tuple1(self) -> None:
        self._tuple(1)

    @_opcode(0x86)
    def _tuple2(self) -> None:
        self._tuple(2)

    @_opcode(0x87)
    def _tuple3(self) -> None:
        self._tuple(3)

    @_opcode(ord("t"))
    def _tuple_marked(self) -> None:
        values = self._marked()
        self._push(tuple(values), 60 + 8 * len(values))

    @_opcode(ord("l"))
    def _list_marked(self) -> None:
        values = self._marked()
        self._push(values, 80 + 8 * len(values))

    @_opcode(ord("d"))
    def _dict_marked(self) -> None:
        values = self._marked()
        self._push({}, 240)
        self._set_items(values)

    @_opcode(ord("a"))
    def _append(self) -> None:
        value = self._pop()
        self.budget.spend(16)
        self._top(list).append(value)

    @_opcode(ord("e"))
    def _append_marked(self) -> None:
        values = self._marked()
        self.budget.spend(16 * len(values))
        self._top(list).extend(values)

    @_opcode(ord("s"))
    def _set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self._set_items([key, value])

    @_opcode(ord("u"))
    def _set_marked(self) -> None:
        self._set_items(self._marked())

    @_opcode(0x90)
    def _add_marked(self) -> None:
        values = self._marked()
        self.budget.spend(60 * len(values))
        self._top(set).update(_key(value) for value in values)

    @_opcode(0x94)
    def _memoize(self) -> None:
        self._remember(len(self.memo))

    @_opcode(ord("q"))
    def _put1(self) -> None:
        self._remember(self._number("<B"))

    @_opcode(ord("r"))
    def _put4(self) -> None:
        self._remember(self._number("<I"))

    @_opcode(ord("h"))
    def _get1(self) -> None:
        self._recall(self._number("<B"))

    @_opcode(ord("j"))
    def _get4(self) -> None:
        self._recall(self._number("<I"))

    @_opcode(ord("c"))
    def _global(self) -> None:
        module = self._line()
        self._symbol(module, self._line())

    @_opcode(0x93)
    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        self._symbol(module, name)

    @_opcode(ord("R"))
    def _reduce(self) -> None:
        arguments, symbol = self._pop(), self._pop()
        self._call(symbol, arguments)

    @_opcode(0x81)
    def _new_object(self) -> None:
        arguments, symbol = self._pop(), self._pop()
        self._call(symbol, arguments)

    @_opcode(ord("b"))
    def _build(self) -> None:
        state = self._pop()
        if not self.stack or self.stack[-1] is _MARK:
            raise Refused("an opcode without its values")
        self.set_state(self.stack[-1], state)

    @_opcode(ord("Q"))
    def _persistent(self) -> None:
        identity = self._pop()
        if self.persistent is None:
            raise Refused("a persistent id")
        self._push(self.persistent(identity), 240)


def _named(code: int) -> str:
    import pickletools

    found = pickletools.code2op.get(chr(code))  # type: ignore[attr-defined]
    return found.name if found else f"0x{code:02x}"


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        raise Refused("a text that is not UTF-8") from None


def _key(value: object) -> str | int:
    # Of other kinds, hashing may run deep, and comparing long.
    if type(value) is str or (type(value) is int and abs(value) < 1 << 60):
        return value
    raise Refused(f"{shown(value)} as a key")
