"""A quantity's name is defined in one place, and names what its instrument writes."""

import ast
import copy
import pickle
from pathlib import Path

import opposing_signals
from opposing_signals.record import quantities
from opposing_signals.record.quantities import QUANTITIES, SAMPLE_LOSS, Quantity

PACKAGE = Path(opposing_signals.__file__).parent

MODULES = [
    path
    for path in sorted(PACKAGE.rglob("*.py"))
    # Curvature measures but writes nothing: its functions share names with quantities.
    if path.name != "quantities.py" and path.relative_to(PACKAGE).parts[0] != "curvature"
]
ORDINARY = {"w", "path", "outputs", "minimum", "grid", "magnitude", "bound", "holds", "measured", "conditions"} | {
    "parameters", "projection", "prediction", "colour", "neighbour", "batch_size",
}  # fmt: skip
"""Words that also name other things: they are only checked where a record is read or written."""
NAMING = {"required_optimizer", "check_outputs"}
"""Functions that take the name of an instrument in the configuration."""
CONSTANTS = {name: value for name, value in vars(quantities).items() if isinstance(value, Quantity)}


def misplaced(tree: ast.AST) -> list[tuple[int, str]]:
    """Line and name of each quantity that is written as a string literal."""
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in QUANTITIES:
            around = parents[node]
            called = getattr(around.func, "attr", "") if isinstance(around, ast.Call) else ""
            of_record = called in ("append", "write") or (
                isinstance(around, ast.Subscript | ast.Compare) and "record" in ast.unparse(around)
            )
            if of_record or (node.value not in ORDINARY and called not in NAMING):
                found.append((node.lineno, node.value))
    return found


def test_the_search_finds_names_where_they_stand_as_strings():
    assert misplaced(ast.parse("record['path']")) == [(1, "path")]
    assert misplaced(ast.parse("self.write(module, step, 'outputs', 1)")) == [(1, "outputs")]
    assert misplaced(ast.parse("x = ('sample_loss', 'path')")) == [(1, "sample_loss")]
    assert not misplaced(ast.parse("self.check_outputs('outputs'); record[SAMPLE_LOSS]; open('path', 'w')"))


def test_no_name_stands_as_a_string_elsewhere():
    found = {str(path.relative_to(PACKAGE)): misplaced(ast.parse(path.read_text(encoding="utf-8"))) for path in MODULES}
    assert {path: names for path, names in found.items() if names} == {}
    assert len(found) > 70


def writers(path: Path) -> dict[str, set[str]]:
    """Each class or function of a module with the quantities that it writes."""
    return {
        node.name: {
            ast.unparse(argument)
            for call in ast.walk(node)
            if isinstance(call, ast.Call) and getattr(call.func, "attr", "") in ("write", "append")
            for argument in call.args
            if isinstance(argument, ast.Name) and argument.id in CONSTANTS
        }
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    }


def test_each_instrument_writes_what_its_quantities_say():
    written = {name: names for path in (PACKAGE / "instruments").glob("*.py") for name, names in writers(path).items()}
    declared: dict[str, set[str]] = {name: set() for name in written}
    for name, quantity in CONSTANTS.items():
        if quantity.writer in declared:
            declared[quantity.writer].add(name)
    assert declared == written
    assert sum(map(len, written.values())) > 50


def test_a_quantity_is_its_name_and_keeps_its_meaning_in_a_copy():
    assert SAMPLE_LOSS == "sample_loss"
    assert {SAMPLE_LOSS: 1}["sample_loss"] == 1
    for other in (copy.deepcopy(SAMPLE_LOSS), pickle.loads(pickle.dumps(SAMPLE_LOSS))):
        assert vars(other) == vars(SAMPLE_LOSS) != {}
    assert len(QUANTITIES) == len(CONSTANTS)
