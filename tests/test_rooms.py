"""Which room of the package may import which: dependencies point one way."""

import ast
from pathlib import Path

import pytest

import opposing_signals

PACKAGE = Path(opposing_signals.__file__).parent
ALLOWED = {
    "record": {"crash", "errors", "files"},
    "curvature": {"errors", "processes", "values"},
    "optim": {"curvature", "errors", "processes", "values"},
    "models": {"errors", "values"},
    "data": {"errors", "files", "values"},
}
"""All imports of these rooms within the package."""
FORBIDDEN = {
    "training": {"instruments", "studies", "follow", "report", "app"},
    "instruments": {"studies", "follow", "report", "app"},
    "signals": {"studies", "training", "instruments", "follow", "report", "app"},
    "studies": {"training", "instruments", "app"},
}
LEAVES = {"training.module"}
"""The part of training that instruments may import."""


def imported(room: str) -> set[str]:
    """The package's modules that a room's modules import, at any place, without the package's name."""
    found = set()
    for path in (PACKAGE / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: a relative import"
                names = [node.module or ""]
                if node.module == "opposing_signals":
                    names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name.removeprefix("opposing_signals.") for name in names if name.startswith("opposing_signals.")}
    return {name for name in found if name.split(".")[0] != room}


def rooms(room: str) -> set[str]:
    return {name.split(".")[0] for name in imported(room)}


@pytest.mark.parametrize("room", ALLOWED)
def test_the_lower_rooms_import_these_alone(room):
    assert rooms(room) <= ALLOWED[room]


@pytest.mark.parametrize("room", FORBIDDEN)
def test_the_upper_rooms_import_none_of_these(room):
    assert rooms(room)
    assert not rooms(room) & FORBIDDEN[room]


def test_instruments_know_of_training_only_what_calls_them():
    assert {name for name in imported("instruments") if name.startswith("training")} == LEAVES


def test_a_module_of_curvature_is_of_a_size_to_read():
    sizes = {path.name: path.read_text(encoding="utf-8").count("\n") for path in (PACKAGE / "curvature").rglob("*.py")}
    del sizes["eigen.py"]  # a single solver with its basis and bounds
    assert max(sizes.values()) <= 400
