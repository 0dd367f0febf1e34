"""Which room may import which: `python -m tests.imports` prints every import that runs up, sideways or in a circle.

A room is a folder of utils/, or a file that lies beside them. Imports run down the floors; rooms of one floor don't know
each other, and nothing under utils/ knows a script. Imports for annotations alone count, too.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

FLOORS = (
    ("core",),
    ("network", "data"),
    ("detection", "quantized", "pruning", "converters", "weights"),
    ("loading", "recipe", "graph"),
    ("distillation", "checking", "export"),
    ("runtimes",),
    ("scripts",),
    ("training",),
    ("compression",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def modules(root: Path) -> dict[str, Path]:
    """{dotted name: file} of everything under utils/ and of the scripts beside it."""
    paths = [*root.glob("*.py"), *root.glob("utils/**/*.py")]
    return {".".join(p.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): p for p in paths}


def imports(path: Path, known: dict[str, Path]) -> Iterator[tuple[int, str]]:
    """(line, module of `known`) for each import of a file, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found = [f"{node.module}.{alias.name}" for alias in node.names]
            found = [name if name in known else str(node.module) for name in found]
        else:
            continue
        yield from ((node.lineno, name) for name in dict.fromkeys(found) if name in known)


def faults(root: Path) -> list[str]:
    """A line for each import that shouldn't be, and for each circle of modules."""
    known = modules(root)
    reads = {name: list(imports(path, known)) for name, path in known.items()}
    lines = [
        f"{known[name].relative_to(root)}:{line}: {reason}"
        for name, found in reads.items()
        for line, other in found
        if (reason := _fault(name, other))
    ]
    return lines + [f"a circle: {' -> '.join(circle)}" for circle in _circles({n: {o for _, o in f} for n, f in reads.items()})]


def _fault(name: str, other: str) -> str:
    """Why the module `name` may not import `other`, "" if it may."""
    if not name.startswith("utils.") or other == "utils":
        return ""
    if not other.startswith("utils."):
        return f"utils/ doesn't know the scripts: {other}"
    mine, theirs = name.split(".")[1], other.split(".")[1]
    unknown = [room for room in (mine, theirs) if room not in FLOOR]
    if unknown:
        return f"{unknown[0]} is a room of no floor in tests/imports.py"
    return "" if mine == theirs or FLOOR[theirs] < FLOOR[mine] else f"{mine} doesn't lie above {theirs}"


def _circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Circles of modules, each once: what a walk from every module comes back to."""
    done: set[str] = set()
    found = []

    def walk(name: str, way: list[str]) -> None:
        if name in way:
            found.append([*way[way.index(name) :], name])
        elif name not in done:
            for other in sorted(graph[name]):
                walk(other, [*way, name])
            done.add(name)

    for name in sorted(graph):
        walk(name, [])
    return found


if __name__ == "__main__":
    wrong = faults(Path(__file__).resolve().parents[1])
    print("\n".join(wrong), end="\n" if wrong else "")
    sys.exit(bool(wrong))
