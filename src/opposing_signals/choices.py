"""The choices in each group of the configuration.

Most choices are YAML files in the folder of their group. Two kinds are written more concisely: families of similar
choices as rows of one table, and instruments as Python classes, whose signatures are their configuration. Hydra finds
them all. The folders are the package's own and those that a user adds by ``--config-dir``, ``hydra.searchpath`` or a
SearchPathPlugin, as found by `opposing_signals.arguments.folders`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from opposing_signals.configuration import configuration_folder
from opposing_signals.errors import InputError

INSTRUMENTS = "instruments"
TABLES = "tables"
_registered: tuple[Path, ...] = ()
"""The folders whose choices were last registered with Hydra."""


def choices(group: str, folders: Sequence[Path] | None = None) -> list[str]:
    """The names that can be chosen in ``group``; none if there is no such group."""
    found = set(derived(folders).get(group, {}))
    for folder in _searched(folders):
        found |= {path.stem for path in (folder / group).glob("*.yaml")}
    return sorted(found)


def written(group: str, name: str, folders: Sequence[Path] | None = None) -> dict[str, Any]:
    """A choice as written, before anything is composed or resolved."""
    if name in (rows := derived(folders).get(group, {})):
        return deepcopy(rows[name])
    path = next(path for folder in _searched(folders) if (path := folder / group / f"{name}.yaml").is_file())
    return _loaded(path)


def derived(folders: Sequence[Path] | None = None) -> dict[str, dict[str, dict[str, Any]]]:
    """Group ↦ name ↦ configuration of all choices that have no file of their own."""
    found: dict[str, dict[str, dict[str, Any]]] = {INSTRUMENTS: _instruments()}
    for folder in reversed(_searched(folders)):
        for group, rows in _tables(folder):
            found.setdefault(group, {}).update(rows)
    return found


def register(folders: Sequence[Path] | None = None) -> None:
    """Let Hydra find the choices without a file of their own; done once per process for the same folders."""
    global _registered
    if _registered == (searched := tuple(_searched(folders))):
        return
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    vars(store)["__deepcopy__"] = _store_itself
    for group, members in derived(folders).items():
        package = None if group == INSTRUMENTS else "_global_"
        for name, node in members.items():
            store.store(name, node, group, package, provider="opposing-signals")
    _registered = searched


def _store_itself(_: Any) -> Any:
    """Replaces deep copies of the store: Hydra makes one for each composition and never changes it."""
    from hydra.core.config_store import ConfigStore

    return ConfigStore.instance()


def composed(*overrides: str, with_hydra: bool = False) -> DictConfig:
    """The configuration that ``overrides`` give on the command line; ``with_hydra``: with Hydra's own field."""
    from hydra import compose, initialize_config_dir

    register()
    with initialize_config_dir(str(configuration_folder()), version_base="1.3"):
        return compose("config", list(overrides), return_hydra_config=with_hydra)


def check_settings(settings: Mapping[str, Any], folders: Sequence[Path]) -> None:
    """Refuse a run's settings that no choice reads.

    Args:
        settings: The field ``settings`` of a job's configuration.
        folders: Folders of its choices.

    Raises:
        InputError: No choice reads a field of ``settings``.
    """
    texts = [path.read_text("utf-8") for folder in folders for path in folder.rglob("*.yaml")]
    asked = {*re.findall(r"\$\{setting:([\w.]+)", f"{_instruments()} {texts}")}
    for owner, fields in settings.items():
        for name in [f"{owner}.{field}" for field in fields] if isinstance(fields, Mapping) else [owner]:
            if name not in asked:
                near = [f"settings.{known}" for known in get_close_matches(name, asked)]
                proposal = (
                    f"did you mean {' or '.join(near)}?" if near else "expected ${setting:NAME, DEFAULT} in its file"
                )
                raise InputError(f"settings.{name}: no choice asks for it; {proposal}")


def _searched(folders: Sequence[Path] | None) -> Sequence[Path]:
    return [configuration_folder()] if folders is None else folders


def _loaded(path: Path) -> dict[str, Any]:
    read = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(read, dict)
    return {str(field): value for field, value in read.items()}


# -- tables -----------------------------------------------------------------------------------------------------------


@cache
def _tables(folder: Path) -> list[tuple[str, dict[str, dict[str, Any]]]]:
    """Group and rows of each table."""
    paths = sorted((folder / TABLES).glob("*.yaml"))
    return [(table["group"], _rows(table, path)) for path in paths for table in [_loaded(path)]]


def _rows(table: dict[str, Any], path: Path) -> dict[str, dict[str, Any]]:
    """The members of a family: its template, filled with the cells of each row.

    A table has the fields ``group``, ``template`` and ``rows``. In the template ``<name>`` is the name of the row,
    ``<id>`` its first word, and any other ``<cell>`` its cell of that name; a null cell drops the field that it would
    fill. Rows are grouped in sections, whose field ``all`` has the cells that its rows share.

    Raises:
        InputError: The template asks for a cell that a row does not have.
    """
    found = {}
    for section in table["rows"]:
        shared = section.get("all", {})
        for name, cells in section.items():
            if name != "all":
                found[name] = _filled(
                    table["template"], {**shared, **cells, "name": name, "id": name.split("_")[0]}, f"{path}: {name}"
                )
    return found


def _filled(template: Any, cells: dict[str, Any], where: str) -> Any:
    if isinstance(template, dict):
        filled = {_filled(key, cells, where): (value, _filled(value, cells, where)) for key, value in template.items()}
        return {key: value for key, (given, value) in filled.items() if value is not None or given is None}
    if isinstance(template, list):
        return [_filled(value, cells, where) for value in template]
    if not isinstance(template, str):
        return template
    if missing := sorted({*re.findall(r"<(\w+)>", template)} - {*cells}):
        raise InputError(f"{where}: no cell {missing[0]}; there are {', '.join(sorted(cells))}")
    if whole := re.fullmatch(r"<(\w+)>", template):
        return _filled(cells[whole[1]], cells, where)
    return re.sub(r"<(\w+)>", lambda cell: str(_filled(cells[cell[1]], cells, where)), template)


# -- instruments ------------------------------------------------------------------------------------------------------


@cache
def _instruments() -> dict[str, dict[str, Any]]:
    """Name ↦ configuration of every class in `opposing_signals.instruments` that derives from `Instrument`.

    Their source is parsed, not imported, because that would import torch. The name is the class's in snake case. Its
    fields are the constructor's arguments after risk and record; each is ``settings.NAME.FIELD`` of the run, or the
    default. A keyword-only argument is an option that a run may add (``+instruments.NAME.FIELD``); if left out, it is
    not part of the configuration and of the run's key.
    """
    classes: dict[str, tuple[ast.ClassDef, str]] = {}
    for path in sorted((Path(__file__).parent / "instruments").glob("*.py")):
        module = f"{__package__}.{INSTRUMENTS}.{path.stem}"
        parsed = ast.parse(path.read_text("utf-8"))
        classes |= {node.name: (node, module) for node in parsed.body if isinstance(node, ast.ClassDef)}

    def constructor(name: str) -> ast.arguments | None:
        """The constructor of the class or of the first base that has one; None if it is not an instrument."""
        node, _ = classes[name]
        bases = [base.id for base in node.bases if isinstance(base, ast.Name) and base.id in classes]
        own = [part.args for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"]
        if name != "Instrument" and not any(constructor(base) for base in bases):
            return None
        return own[0] if own else constructor(bases[0])

    found = {}
    for name, (_, module) in classes.items():
        arguments = constructor(name)
        if name == "Instrument" or name.startswith("_") or arguments is None:
            continue
        key = re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
        fields = [argument.arg for argument in arguments.args[3:]]
        defaults = [ast.literal_eval(default) for default in arguments.defaults]
        settings = {
            field: f"${{setting:{key}.{field}, {_as_written(default)}}}"
            for field, default in zip(fields, defaults, strict=True)
        }
        found[key] = {key: {"_target_": f"{module}.{name}", **settings}}
    return found


def _as_written(value: Any) -> str:
    """``value`` as an argument of a resolver."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_as_written, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
