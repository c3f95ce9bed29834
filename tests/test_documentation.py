"""Code in the documentation runs and gives the results shown: docstrings, pages, the notebook."""

import doctest
import importlib
import json
import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
PROMPT = ">>> "
MODULES = [
    ".".join(path.relative_to(SOURCE).with_suffix("").parts)
    for path in sorted(SOURCE.rglob("*.py"))
    if PROMPT in path.read_text(encoding="utf-8")
]
PAGES = [path for path in sorted((ROOT / "docs").rglob("*.md")) if PROMPT in path.read_text(encoding="utf-8")]
NOTEBOOKS = sorted((ROOT / "docs").glob("*.ipynb"))


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_run(name):
    ran = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert ran.attempted > 0
    assert not ran.failed


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_examples_of_a_page_run(path):
    ran = doctest.testfile(str(path), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert ran.attempted > 0
    assert not ran.failed


def test_every_room_for_users_has_examples():
    assert {path.stem for path in PAGES} >= {"follow", "optim", "record", "signals"}
    assert any(name.startswith("opposing_signals.curvature") for name in MODULES)


def cells(path, kind):
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    variables = {"__name__": "__main__"}
    for number, cell in enumerate(cells(path, "code")):
        exec(compile("".join(cell["source"]), f"{path.name}, cell {number}", "exec"), variables)
    plt.close("all")
    outputs = [output for cell in cells(path, "code") for output in cell["outputs"]]
    printed = "".join(text for output in outputs for text in output.get("text", ()))
    said = capsys.readouterr().out
    for told in ("correlation of the two groups", "in short: ", "% of the examples"):
        assert told in said
        assert told in printed


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_is_small_and_names_no_place(path):
    text = path.read_text(encoding="utf-8")
    assert len(text) < 100_000
    assert not re.search(r"/(home|root|tmp|Users|work)/", text)
    assert not [o for cell in cells(path, "code") for o in cell["outputs"] if o.get("name") == "stderr"]
    links = [
        link
        for cell in cells(path, "markdown")
        for link in re.findall(r"\]\((?!http)([^)#]+)", "".join(cell["source"]))
    ]
    assert links
    assert all((path.parent / link).is_file() for link in links)
