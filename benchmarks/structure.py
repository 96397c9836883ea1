"""The structure of the package: subpackages (rooms), imports between them (arrows), long files, and functions with many parameters.

    python benchmarks/structure.py [PACKAGE_FOLDER]

A room is a folder or file at the top level of the package. An arrow is a pair of rooms, one of which imports the other. Import cycles are reported.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from pathlib import Path

LONG, MANY = 300, 12


def room_of(module: str, package: str) -> str:
    """The room of a module's dotted name; "" for the package itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[0] == package else ""


def imports_of(tree: ast.AST) -> set[str]:
    """Dotted names that a file imports, `from a import b` as `a.b`."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The number of parameters of a function, without `self` and `cls`."""
    every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return sum(arg.arg not in ("self", "cls") for arg in every)


def levels(arrows: dict[str, set[str]]) -> dict[str, int]:
    """The level of every room: one above the highest room that it imports; -1 in an import cycle."""
    floor: dict[str, int] = {}

    def of(room: str, above: tuple[str, ...]) -> int:
        if room in above:
            return -1
        if room not in floor:
            below = [of(other, (*above, room)) for other in arrows.get(room, ())]
            floor[room] = -1 if -1 in below else 1 + max(below, default=-1)
        return floor[room]

    return {room: of(room, ()) for room in arrows}


def main() -> None:
    """Print the measurements."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1] / "iidrive"
    package, arrows = folder.name, defaultdict[str, set[str]](set)
    long, many, lines = [], [], 0
    for path in sorted(folder.rglob("*.py")):
        text = path.read_text()
        tree, count = ast.parse(text), text.count("\n")
        lines += count
        name = path.relative_to(folder.parent)
        if count > LONG:
            long.append(f"{name} ({count})")
        many += [
            f"{name}:{node.name} ({parameters(node)})"
            for node in ast.walk(tree)
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and parameters(node) > MANY
        ]
        room = room_of(".".join(name.with_suffix("").parts), package)
        if room.startswith("__"):
            continue
        arrows[room] |= {
            other
            for module in imports_of(tree)
            if (other := room_of(module, package)) and other != room and (folder / other).exists() | (folder / f"{other}.py").exists()
        }
    floors = levels(arrows)
    print(f"{len(arrows)} rooms on {1 + max(floors.values())} floors, {sum(map(len, arrows.values()))} arrows, {lines} lines")
    for room in sorted(arrows, key=lambda r: (-floors[r], r)):
        print(f"  {floors[room]}  {room:<12} → {', '.join(sorted(arrows[room])) or '-'}")
    circles = [room for room, floor in floors.items() if floor < 0]
    print(f"in circles: {', '.join(circles) or 'none'}")
    print(f"files over {LONG} lines ({len(long)}): {', '.join(long) or 'none'}")
    print(f"functions over {MANY} parameters ({len(many)}): {', '.join(many) or 'none'}")


if __name__ == "__main__":
    main()
