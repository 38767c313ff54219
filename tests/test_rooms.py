"""Which room of the package may import which: each only those above it in this list, so there is no circle."""

import ast
from pathlib import Path

import pytest

import satm

ROOMS = (
    *("errors", "version", "registry", "seeds", "params", "ops"),
    *("storage", "config", "run", "unroll", "outer", "data", "networks", "experts", "results", "methods"),
    *(
        "distill",
        "evaluation",
        "analysis",
        "workflow",
        "tables",
        "cost",
        "figures",
        "stages",
        "benchmarks",
        "flags",
        "cli",
    ),
)
PACKAGE = Path(satm.__file__).parent
FACE = ("__init__", "__main__")


def imported(path: Path) -> set[str]:
    """Return the rooms that a file imports anywhere, also inside functions and for types alone."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "satm":
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("satm."):
            found.add(str(node.module).split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {name.name.split(".")[1] for name in node.names if name.name.startswith("satm.")}
    return found


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_room_has_its_place() -> None:
    assert {room(path) for path in PACKAGE.rglob("*.py")} - set(FACE) == set(ROOMS)


@pytest.mark.parametrize("name", ROOMS)
def test_a_room_imports_only_rooms_above_it(name: str) -> None:
    allowed = set(ROOMS[: ROOMS.index(name) + 1])
    for path in PACKAGE.rglob("*.py"):
        if room(path) == name:
            assert imported(path) <= allowed, path.relative_to(PACKAGE)


def test_the_face_is_imported_by_nobody_but_the_command_line() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert "import satm\n" not in path.read_text() or room(path) in FACE, path


LIMIT = 400
"""Lines of a file."""


def test_no_file_is_too_long_to_be_read_in_one_go() -> None:
    assert {
        str(path): lines for path in PACKAGE.rglob("*.py") if (lines := len(path.read_text().splitlines())) > LIMIT
    } == {}
