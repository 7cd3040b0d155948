"""Which rooms of the package import which: one way only (see the docstrings of the rooms)."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ofa_fairseq"

# Room -> what it must not know. `prepare` is for people at a command line: nobody else imports it.
FORBIDDEN = {
    "data": {"tasks", "models", "criterions", "metrics", "prepare"},
    "models": {"tasks", "data", "criterions", "metrics", "prepare"},
    "metrics": {"tasks", "models", "criterions", "prepare"},
}


def imported_rooms(source: str, module: str) -> set[str]:
    """The rooms (folders, or files beside them) of the package that a module imports anywhere in its text.

    `module` is the module's full name, with `.__init__` for a package's own file.
    """
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: -node.level] if node.level else []
            base += node.module.split(".") if node.module else []
            names += [".".join([*base, alias.name]) for alias in node.names]
    parts = [name.split(".") for name in names]
    return {name[1] for name in parts if name[0] == PACKAGE.name and len(name) > 1}


@pytest.fixture(scope="module")
def rooms() -> dict[str, set[str]]:
    """Room -> the other rooms that it imports."""
    found: dict[str, set[str]] = {}
    for file in PACKAGE.rglob("*.py"):
        parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
        if parts[1] != "__init__":  # the table of contents, which imports what registers something
            rooms = found.setdefault(parts[1], set())
            rooms |= imported_rooms(file.read_text(encoding="utf-8"), ".".join(parts)) - {parts[1]}
    return found


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("from ..tasks.caption import CaptionTask", {"tasks"}),
        ("from ..tasks import caption", {"tasks"}),
        ("from .. import tasks, models", {"tasks", "models"}),
        ("import torch, ofa_fairseq.models.ofa as ofa", {"models"}),
        ("from ofa_fairseq import prepare", {"prepare"}),
        ("def late():\n    if True:\n        from ..models import ofa", {"models"}),
        ("from . import files\nfrom .files import atomic_write\nfrom fairseq import tasks", {"data"}),
    ],
)
def test_imports_are_found(line: str, expected: set[str]) -> None:
    assert imported_rooms(line, "ofa_fairseq.data.tsv") == expected
    assert imported_rooms(line, "ofa_fairseq.data.__init__") == expected


@pytest.mark.parametrize("room", FORBIDDEN)
def test_a_room_does_not_import_what_is_above_it(room: str, rooms: dict[str, set[str]]) -> None:
    assert not rooms[room] & FORBIDDEN[room]


def test_no_room_imports_prepare(rooms: dict[str, set[str]]) -> None:
    assert "prepare" in rooms
    assert [room for room, imported in rooms.items() if "prepare" in imported] == []


def test_imports_go_one_way(rooms: dict[str, set[str]]) -> None:
    """Raises CycleError, which names the rooms, if two import each other over any number of steps."""
    order = list(TopologicalSorter(rooms).static_order())
    assert order.index("data") < order.index("tasks")
