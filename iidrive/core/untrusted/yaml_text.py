"""Reader of untrusted YAML: plain values only, no repeated keys, aliases counted expanded."""

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
"""Maximum size of a YAML file, bytes."""
LONGEST_INTEGER = 24
"""Maximum characters of an integer; one of 64 bits has 20."""
MOST_VALUES = 100_000
"""Maximum number of values in a file. An alias counts as all the values that it refers to."""
MOST_LEVELS = 100
_Loader: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(path: str | Path) -> Any:
    """Read a YAML (or JSON) file in UTF-8: dicts with text keys, lists, text, numbers, booleans, None. An empty file gives None.

    Raises:
        DataError: naming the file and line, if it is missing, too large, not UTF-8 or not YAML, holds more than `MOST_VALUES` values,
            repeats a key, has a key that is not text, or holds anything but plain values.
    """
    where = printable_line(str(path))
    return parse_yaml(decode(read_bytes(path, LIMIT), where), where)


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML text. `where` is the file name for errors. Raises DataError as `read_yaml` does."""
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
        raise DataError(f"{where}{line}: not readable as YAML ({printable(said, 120)}); correct the file.") from error
    except (ValueError, OverflowError, RecursionError, MemoryError, TypeError) as error:
        raise DataError(f"{where}: not readable as YAML ({printable(str(error), 120)}); correct the file.") from error


def _composed(loader: Any, where: str) -> yaml.Node | None:
    """The root node of the only document, after `_check`."""
    levels = 0
    # Read all events first, so that nesting is counted before anything recurses.
    events = []
    while loader.check_event():
        event = loader.get_event()
        events.append(event)
        if isinstance(event, yaml.CollectionStartEvent):
            levels += 1
            if levels > MOST_LEVELS:
                raise DataError(f"{where}, line {event.start_mark.line + 1}: nested more than {MOST_LEVELS} levels deep; correct the file.")
        elif isinstance(event, yaml.CollectionEndEvent):
            levels -= 1
    again = _Replay(events)
    node = again.get_single_node()
    if node is not None:
        _check(node, where, {}, set())
    return node


class _Replay(Composer, Resolver):
    """A YAML composer that reads from a list of events."""

    def __init__(self, events: list[yaml.Event]) -> None:
        Composer.__init__(self)
        Resolver.__init__(self)
        self.events, self.at = events, 0

    def check_event(self, *choices: type) -> bool:
        """Whether the next event exists and is of one of these types."""
        return self.at < len(self.events) and (not choices or isinstance(self.events[self.at], choices))

    def peek_event(self) -> yaml.Event:
        """The next event, without consuming it."""
        return self.events[self.at]

    def get_event(self) -> yaml.Event:
        """Consume and return the next event."""
        self.at += 1
        return self.events[self.at - 1]


_Replay.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag not in ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:merge")]
    for first, known in Resolver.yaml_implicit_resolvers.items()
}
_Replay.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+"), list("-+.0123456789"))


def _check(node: yaml.Node, where: str, counted: dict[int, int], open_: set[int]) -> int:
    """Number of values of a node with aliases expanded. Raises DataError for a key that is not text or is repeated."""
    if id(node) in counted:
        return counted[id(node)]
    if id(node) in open_:
        raise DataError(f"{where}, line {node.start_mark.line + 1}: a value that contains itself; correct the file.")
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
            f"{where}, line {node.start_mark.line + 1}: more than {MOST_VALUES} values with aliases expanded; correct the file."
        )
    open_.discard(id(node))
    counted[id(node)] = total
    return total
