"""Interpreter of pickle opcodes (described in CPython's Lib/pickletools.py) with a memory budget."""

from __future__ import annotations

import codecs
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from iidrive.core.untrusted.pickle_values import (
    KNOWN,
    STORAGES,
    Budget,
    Named,
    NumPyArray,
    NumPyType,
    RefusedError,
    Storage,
    TooMuchError,
    hashable,
)

_LAZY = 1 << 12
"""Byte strings of this length or more are not copied from the file until they are used."""


class Interpreter:
    """State while one pickle is read. `at` is the offset of the next opcode, bytes."""

    def __init__(self, content: memoryview, part: Callable[[str, int], bytes] | None) -> None:
        self.content, self.at, self.part = content, 0, part
        self.budget = Budget(len(content))
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """Run all opcodes and return the pickle's value."""
        content, codes = self.content, _CODES
        budget = self.budget
        while True:
            if self.at >= len(content):
                raise EOFError("it ends before its STOP opcode")
            code = content[self.at]
            self.at += 1
            if code == 0x2E:  # STOP
                if self.outer:
                    raise ValueError("an unclosed mark at the end")
                return self.stack.pop()
            try:
                work = codes[code]
            except KeyError:
                raise ValueError(f"unknown opcode {code}") from None
            work(self)
            if budget.left < 0:
                budget.spend(0)

    def take(self, count: int) -> memoryview:
        """The next `count` bytes."""
        if count < 0 or count > len(self.content) - self.at:
            raise EOFError(f"{count} bytes expected, {len(self.content) - self.at} left")
        self.at += count
        return self.content[self.at - count : self.at]

    def byte(self) -> int:
        """The next byte."""
        self.at += 1
        return self.content[self.at - 1]

    def number(self, count: int) -> int:
        """The next `count` bytes as an unsigned integer, little-endian."""
        return int.from_bytes(self.take(count), "little")

    def line(self) -> str:
        """The text up to the end of the line."""
        end = self.at
        content = self.content
        while end < len(content) and content[end] != 10:
            end += 1
            if end - self.at > _LONGEST_LINE:
                raise TooMuchError("a line without an end")
        text = bytes(self.take(end - self.at))
        self.take(1)
        return text.decode("utf-8", "surrogateescape")

    def pop_mark(self) -> list[Any]:
        """Pop and return the values above the newest mark."""
        items, self.stack = self.stack, self.outer.pop()
        return items

    def text(self, raw: memoryview) -> None:
        """Push text."""
        self.budget.left -= 60 + len(raw)
        self.stack.append(str(raw, "utf-8", "surrogatepass"))

    def raw(self, raw: memoryview) -> None:
        """Push bytes: a copy if they are short, else a view of the file."""
        self.budget.left -= 60 if len(raw) >= _LAZY else 60 + len(raw)
        self.stack.append(raw if len(raw) >= _LAZY else bytes(raw))

    def named(self, module: Any, name: Any) -> None:
        """Push the object that replaces a global name."""
        found = KNOWN.get((module, name)) if isinstance(module, str) and isinstance(name, str) else None
        if found is None and module == "torch" and self.part is not None and name in STORAGES:
            self.stack.append(name)
            return
        if found is None:
            # The name tells the user which software wrote the file.
            raise RefusedError(repr(f"{str(module)[:60]}.{str(name)[:60]}"))
        self.stack.append(found)

    def call(self) -> None:
        """Pop a tuple of arguments and a function, call it, and push the result."""
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, Named) or not isinstance(arguments, tuple):
            raise TypeError("a call of something that is not a function")
        self.stack.append(function.make(self.budget, *arguments))

    def build(self) -> None:
        """Pop a state and set it on the array or type below."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, NumPyType | NumPyArray):
            target.set(self.budget, state)
        elif not isinstance(target, dict):  # attributes of a dict subclass are ignored
            raise TypeError("a state for an object that has none")

    def stored(self, pid: Any) -> None:
        """Push the storage of a tensor in a torch.save file."""
        if self.part is None:
            raise RefusedError("data outside the file")
        kind, code, key, _, count = pid
        if kind != "storage" or code not in STORAGES or not isinstance(key, str) or type(count) is not int or not 0 <= count < 1 << 40:
            raise RefusedError("data of an unknown kind")
        self.budget.spend(300)
        part, wanted = self.part, count * np.dtype(STORAGES[code]).itemsize
        self.stack.append(Storage(lambda: part(key, wanted), code, count))

    def put(self, index: int) -> None:
        """Store the top value in the memo."""
        self.budget.left -= 100
        self.memo[index] = self.stack[-1]

    def extend(self, items: list[Any]) -> None:
        """Append items to the list on top of the stack."""
        self.budget.spend(8 * len(items))
        target = self.stack[-1]
        if type(target) is not list:
            raise TypeError("items for something that is not a list")
        target.extend(items)

    def update(self, items: list[Any]) -> None:
        """Add items (key, value, key, value, …) to the dict on top of the stack."""
        self.budget.spend(50 * len(items))
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise TypeError("items for something that is not a dict")
        for i in range(0, len(items), 2):
            target[hashable(items[i])] = items[i + 1]

    def push(self, value: Any, cost: int) -> None:
        """Push a value that takes `cost` bytes of memory."""
        self.budget.left -= cost
        self.stack.append(value)

    def group(self, count: int) -> None:
        """Replace the top `count` values with a tuple of them."""
        self.budget.left -= 60
        if len(self.stack) < count:
            raise IndexError("too few values for a tuple")
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def mark(self) -> None:
        """Push a mark."""
        self.budget.left -= 100
        self.outer.append(self.stack)
        self.stack = []

    def pop(self) -> None:
        """Discard the top value, or the newest mark."""
        if self.stack:
            self.stack.pop()
        else:
            self.pop_mark()

    def whole(self, text: str) -> None:
        """Push an integer in decimal digits, or a boolean."""
        self.push({"00": False, "01": True}[text] if text in ("00", "01") else int(text.removesuffix("L")), 32 + len(text))

    def signed(self, count: int) -> None:
        """Push an integer of `count` bytes, little-endian, two's complement."""
        if count > _LONGEST_INTEGER:
            raise TooMuchError(f"an integer of {count} bytes")
        self.push(int.from_bytes(self.take(count), "little", signed=True), 32 + count)

    def quoted(self, text: str) -> None:
        """Push a quoted string of protocol 0."""
        if len(text) < 2 or text[0] != text[-1] or text[0] not in "'\"":
            raise ValueError("a string without quotes")
        raw, _ = codecs.escape_decode(text[1:-1].encode("utf-8", "surrogateescape"))
        self.text(memoryview(raw.decode("latin1").encode()))


_LONGEST_LINE = 1 << 20
_LONGEST_INTEGER = 1 << 10


def _tuple(self: Interpreter) -> None:
    items = self.pop_mark()
    self.push(tuple(items), 56 + 8 * len(items))


def _list(self: Interpreter) -> None:
    items = self.pop_mark()
    self.push(items, 72 + 8 * len(items))


def _dict(self: Interpreter) -> None:
    items = self.pop_mark()
    self.push({}, 232)
    self.update(items)


def _set(self: Interpreter) -> None:
    items = self.pop_mark()
    self.push({hashable(item) for item in items}, 232 + 64 * len(items))


def _add(self: Interpreter) -> None:
    items = self.pop_mark()
    self.budget.spend(64 * len(items))
    if type(self.stack[-1]) is not set:
        raise TypeError("items for something that is not a set")
    self.stack[-1].update(hashable(item) for item in items)


def _append(self: Interpreter) -> None:
    item = self.stack.pop()
    self.extend([item])


def _item(self: Interpreter) -> None:
    value = self.stack.pop()
    key = self.stack.pop()
    self.update([key, value])


def _global(self: Interpreter) -> None:
    module = self.line()
    self.named(module, self.line())


def _stack_global(self: Interpreter) -> None:
    name, module = self.stack.pop(), self.stack.pop()
    self.named(module, name)


def _new(self: Interpreter) -> None:
    self.call()


def _get(self: Interpreter, index: int) -> None:
    self.stack.append(self.memo[index])


def _refuse_extension(self: Interpreter) -> None:
    raise RefusedError("an extension code")


def _inst(self: Interpreter) -> None:
    module = self.line()
    self.named(module, self.line())
    raise RefusedError("an instance of an old class")


_CODES: dict[int, Callable[[Interpreter], object]] = {
    ord("("): lambda p: p.mark(),
    ord("0"): lambda p: p.pop(),
    ord("1"): lambda p: p.pop_mark(),
    ord("2"): lambda p: p.stack.append(p.stack[-1]),
    ord("F"): lambda p: p.push(float(p.line()), 24),
    ord("I"): lambda p: p.whole(p.line()),
    ord("L"): lambda p: p.whole(p.line()),
    ord("J"): lambda p: p.signed(4),
    ord("K"): lambda p: p.push(p.byte(), 0),
    ord("M"): lambda p: p.push(p.number(2), 28),
    ord("N"): lambda p: p.stack.append(None),
    ord("P"): lambda p: p.stored(p.line()),
    ord("Q"): lambda p: p.stored(p.stack.pop()),
    ord("R"): lambda p: p.call(),
    ord("S"): lambda p: p.quoted(p.line()),
    ord("T"): lambda p: p.text(memoryview(bytes(p.take(p.number(4))).decode("latin1").encode())),
    ord("U"): lambda p: p.text(memoryview(bytes(p.take(p.byte())).decode("latin1").encode())),
    ord("V"): lambda p: p.text(
        memoryview(p.line().encode("utf-8", "surrogateescape").decode("raw-unicode-escape").encode("utf-8", "surrogatepass"))
    ),
    ord("X"): lambda p: p.text(p.take(p.number(4))),
    ord("a"): _append,
    ord("b"): lambda p: p.build(),
    ord("c"): _global,
    ord("d"): _dict,
    ord("}"): lambda p: p.push({}, 64),
    ord("e"): lambda p: p.extend(p.pop_mark()),
    ord("g"): lambda p: _get(p, int(p.line())),
    ord("h"): lambda p: _get(p, p.byte()),
    ord("j"): lambda p: _get(p, p.number(4)),
    ord("i"): _inst,
    ord("l"): _list,
    ord("]"): lambda p: p.push([], 72),
    ord("p"): lambda p: p.put(int(p.line())),
    ord("q"): lambda p: p.put(p.byte()),
    ord("r"): lambda p: p.put(p.number(4)),
    ord("s"): _item,
    ord("t"): _tuple,
    ord(")"): lambda p: p.stack.append(()),
    ord("u"): lambda p: p.update(p.pop_mark()),
    ord("G"): lambda p: p.push(struct.unpack(">d", p.take(8))[0], 24),
    ord("B"): lambda p: p.raw(p.take(p.number(4))),
    ord("C"): lambda p: p.raw(p.take(p.byte())),
    0x80: lambda p: _protocol(p.byte()),
    0x81: _new,
    0x82: _refuse_extension,
    0x83: _refuse_extension,
    0x84: _refuse_extension,
    0x85: lambda p: p.group(1),
    0x86: lambda p: p.group(2),
    0x87: lambda p: p.group(3),
    0x88: lambda p: p.stack.append(True),
    0x89: lambda p: p.stack.append(False),
    0x8A: lambda p: p.signed(p.byte()),
    0x8B: lambda p: p.signed(p.number(4)),
    0x8C: lambda p: p.text(p.take(p.byte())),
    0x8D: lambda p: p.text(p.take(p.number(8))),
    0x8E: lambda p: p.raw(p.take(p.number(8))),
    0x8F: lambda p: p.push(set(), 216),
    0x90: _add,
    0x91: _set,
    0x93: _stack_global,
    0x94: lambda p: p.put(len(p.memo)),
    0x95: lambda p: p.take(8),
    0x96: lambda p: p.raw(p.take(p.number(8))),
}
"""Opcode → action (described in CPython's Lib/pickletools.py). Any other opcode is an error."""


def _protocol(number: int) -> None:
    if number > 5:
        raise ValueError(f"protocol {number}")
