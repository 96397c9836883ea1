"""YAML that anybody may have written: plain values only, no key twice, aliases counted as what they stand for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.resolver import Resolver

from iidrive.core.errors import DataError
from iidrive.core.text import printable, printable_line
from iidrive.core.untrusted.files import decode, read_bytes

LIMIT = 1 << 20
"""Bytes of a YAML file."""
LONGEST_INTEGER = 24
"""Characters of a whole number; one of 64 bits has 20."""
MOST_VALUES = 100_000
"""Values of a file, an alias counted as all that it stands for."""
MOST_LEVELS = 100
_Loader: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(path: str | Path) -> Any:
    """The value of a YAML (or JSON) file in UTF-8: dicts with text as keys, lists, text, numbers, booleans, None. Empty files give None.

    Raises:
        DataError: naming the file and the line, if it is missing, too large, not UTF-8 or not YAML, holds more values than any recipe,
            names a key twice, has a key that is no text, or holds other things than plain values.
    """
    where = printable_line(str(path))
    return parse_yaml(decode(read_bytes(path, LIMIT), where), where)


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text; `where` names it in errors. Raises DataError as `read_yaml` does."""
    try:
        loader = _Loader(text)
        try:
            node = _composed(loader, where)
            return None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        said = getattr(error, "problem", None) or str(error)
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise DataError(f"{where}{line}: not readable as YAML ({printable(said, 120)}); mend the file.") from error
    except (ValueError, OverflowError, RecursionError, MemoryError, TypeError) as error:
        raise DataError(f"{where}: not readable as YAML ({printable(str(error), 120)}); mend the file.") from error


def _composed(loader: Any, where: str) -> yaml.Node | None:
    """The nodes of the only document, after `_check`."""
    levels = 0
    # Events first: nesting is counted before anything recurses into it.
    events = []
    while loader.check_event():
        event = loader.get_event()
        events.append(event)
        if isinstance(event, yaml.CollectionStartEvent):
            levels += 1
            if levels > MOST_LEVELS:
                raise DataError(f"{where}, line {event.start_mark.line + 1}: nested more than {MOST_LEVELS} levels deep; mend the file.")
        elif isinstance(event, yaml.CollectionEndEvent):
            levels -= 1
    again = _Replay(events)
    node = again.get_single_node()
    if node is not None:
        _check(node, where, {}, set())
    return node


class _Replay(Composer, Resolver):
    """A composer of events that were kept."""

    def __init__(self, events: list[yaml.Event]) -> None:
        Composer.__init__(self)
        Resolver.__init__(self)
        self.events, self.at = events, 0

    def check_event(self, *choices: type) -> bool:
        """Whether there is an event left, of one of the kinds."""
        return self.at < len(self.events) and (not choices or isinstance(self.events[self.at], choices))

    def peek_event(self) -> yaml.Event:
        """The next event."""
        return self.events[self.at]

    def get_event(self) -> yaml.Event:
        """The next event, which is taken."""
        self.at += 1
        return self.events[self.at - 1]


_Replay.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag not in ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:merge")]
    for first, known in Resolver.yaml_implicit_resolvers.items()
}
_Replay.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+"), list("-+.0123456789"))


def _check(node: yaml.Node, where: str, counted: dict[int, int], open_: set[int]) -> int:
    """How many values a node stands for, aliases written out; every mapping's keys are text, each once."""
    if id(node) in counted:
        return counted[id(node)]
    if id(node) in open_:
        raise DataError(f"{where}, line {node.start_mark.line + 1}: a value that contains itself; mend the file.")
    open_.add(id(node))
    total = 1
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode) or key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:bool"):
                raise DataError(f"{where}, line {line}: a key must be text; found {printable(getattr(key, 'value', 'a list'), 40)}.")
            if key.value in seen:
                raise DataError(f"{where}, line {line}: the key '{printable(key.value)}' is given twice; keep one.")
            seen.add(key.value)
            key.tag = "tag:yaml.org,2002:str"
            total += _check(value, where, counted, open_)
    elif isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:int" and len(node.value) > LONGEST_INTEGER:
        line = node.start_mark.line + 1
        raise DataError(f"{where}, line {line}: not readable as YAML (a whole number of {len(node.value)} characters); mend the file.")
    elif isinstance(node, yaml.SequenceNode):
        total += sum(_check(value, where, counted, open_) for value in node.value)
    if total > MOST_VALUES:
        raise DataError(
            f"{where}, line {node.start_mark.line + 1}: more than {MOST_VALUES} values with its aliases written out; mend the file."
        )
    open_.discard(id(node))
    counted[id(node)] = total
    return total
