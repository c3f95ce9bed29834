"""Generates the parts of the documentation's site that are not pages in ``docs/``; mkdocs calls ``on_...``.

The overview is README.md; the experiments come from the configuration, the quantities from the package's list, the
first look from a notebook, and the end of the benchmarks page from their docstrings. Links out of ``docs/`` become
links into the repository if its address is known (``repo_url``), otherwise plain words. A link to a missing file is a
warning, which fails the build.
"""

from __future__ import annotations

import ast
import json
import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File, Files

from opposing_signals.experiments import experiments
from opposing_signals.record.quantities import table
from opposing_signals.report import build

log = get_plugin_logger("docs")

ROOT = Path(__file__).parent
LINK = re.compile(r"(!?)\[((?:[^][]|!\[[^]]*\]\([^)]*\))*)\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)")
"""Picture or not, words, path and fragment of a link to a file."""
EXPERIMENTS = """\
# Experiments

`opposing-signals NAME` runs one; a beginning that no other name has will do. Times are those that were measured, on two
cores at `scale=cpu`; an empty one was not. What the experiments show stands in the [results](results.md).

| experiment | what it shows | `cpu` | `paper` |
|---|---|---|---|"""
GENERATED = {
    "index.md": ("README.md", lambda: (ROOT / "README.md").read_text(encoding="utf-8")),
    "new_experiment.md": (
        "examples/own_experiment/README.md",
        lambda: (ROOT / "examples/own_experiment/README.md").read_text(encoding="utf-8"),
    ),
    "experiments.md": ("docs/experiments.md", lambda: experiments_page()),
    "first_look.md": ("docs/first_look.ipynb", lambda: notebook_page(ROOT / "docs" / "first_look.ipynb")),
}
"""Page ↦ (the path that its links are relative to, the function that makes it)."""


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages, and the pictures outside of ``docs/``."""
    for name, (_, made) in GENERATED.items():
        files.append(File.generated(config, name, content=made()))
    for page in list(files.documentation_pages()):
        for picture, _, path, _ in LINK.findall(page.content_string):
            target = _target(page.src_uri, path)
            if picture and not target.startswith("docs/") and (ROOT / target).is_file():
                files.append(File.generated(config, target, abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """The page with resolved links, and with its generated part."""
    if page.file.src_uri == "quantities.md":
        markdown = f"{markdown}\n{table()}\n"
    elif page.file.src_uri == "benchmarks.md":
        markdown = f"{markdown}\n{benchmarks()}\n"

    def led(match: re.Match[str]) -> str:
        picture, words, path, fragment = match.groups()
        target = _target(page.file.src_uri, path)
        if not (ROOT / target).exists() and target.removeprefix("docs/") not in GENERATED:
            log.warning("%s: a link to %s, which is not there", page.file.src_uri, path)
        if picture or (target.startswith("docs/") and target.endswith((".md", ".ipynb"))):
            inside = posixpath.relpath(target.removeprefix("docs/"), posixpath.dirname(page.file.src_uri) or ".")
            return f"{picture}[{words}]({inside}{fragment or ''})"
        return f"[{words}]({config.repo_url.rstrip('/')}/blob/main/{target})" if config.repo_url else words

    return LINK.sub(led, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """The page with code blocks that can be scrolled by keyboard."""
    return html.replace("<pre>", '<pre tabindex="0">')


def on_post_build(config: Any) -> None:
    """The report of the committed results beside the pages."""
    site = Path(config.site_dir)
    build([ROOT / "results"], site / "report" / "index.html")
    for room in ("follow", "record", "signals", "curvature", "optim"):
        described = (site / "reference" / f"{room}.html").read_text(encoding="utf-8")
        names = ast.literal_eval(_assigned(ROOT / "src" / "opposing_signals" / room / "__init__.py", "__all__"))
        anchor = rf'id="opposing_signals\.{room}\.(\w+\.)*'
        if missing := [name for name in names if not re.search(f'{anchor}{name}"', described)]:
            log.warning("reference/%s.md: %s not described", room, ", ".join(missing))


def experiments_page() -> str:
    """Every experiment with what it shows, and its cost where measured."""
    rows = [EXPERIMENTS]
    for name, (title, cost) in experiments().items():
        rows.append(f"| `{name}` | {title} | {cost.get('cpu', '')} | {cost.get('paper', '')} |")
    return "\n".join(rows)


def benchmarks() -> str:
    """Every benchmark with its docstring, which says what it measures and by which command."""
    lines = ["## Every benchmark", "", "What each measures, and its command.", ""]
    folder = ROOT / "benchmarks"
    for path in sorted([*folder.glob("*.py"), *folder.glob("*/__main__.py")]):
        described = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        if "python benchmarks/" not in described:  # what several of them share
            continue
        first, _, rest = described.partition("\n\n")
        commands = re.sub(r"^(?: {4})?python benchmarks", "    python benchmarks", rest, flags=re.MULTILINE)
        name = path.parent.name if path.stem == "__main__" else path.stem
        lines += [f"### {name.replace('_', ' ').capitalize()}", "", " ".join(first.split()), "", commands, ""]
    return "\n".join(lines)


def notebook_page(path: Path) -> str:
    """The notebook as Markdown: its texts, its code, and the code's output."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        for output in cell.get("outputs", ()):
            drawn = output.get("data", {}).get("image/png")
            if drawn:
                parts.append(f'<img alt="What this cell draws" src="data:image/png;base64,{"".join(drawn.split())}">')
            elif "text" in output:
                parts.append(f"```text\n{''.join(output['text']).rstrip()}\n```")
    parts.append(f'<a href="{path.name}" download>This page as a notebook</a>')
    return "\n\n".join(parts)


def _assigned(path: Path, name: str) -> Any:
    """The value that the module at ``path`` gives to ``name``."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return node.value
    raise LookupError(f"{path}: no {name}")


def _target(page: str, path: str) -> str:
    """What a link on ``page`` leads to, as a path in the repository."""
    source = GENERATED[page][0] if page in GENERATED else f"docs/{page}"
    return os.path.normpath(posixpath.join(posixpath.dirname(source), path))
