import dataclasses

import numpy as np
import pytest

from opposing_signals.data import openwebtext
from opposing_signals.data.tokenizers import decode
from opposing_signals.record import Record
from opposing_signals.signals.tokens import Contexts, TokenTrack, token_groups
from opposing_signals.studies.text.tables import found_sections, named_sections

LINE = "They all went home and said “no.” He said “yes”. We had two: the hat. And a list:\n- hat\n"
STEPS = 40


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "own.txt"
    path.write_text(12 * LINE + ".", encoding="utf-8", newline="")
    return openwebtext("characters", block=len(LINE), path=str(path))


def points_of(data, ending: str) -> np.ndarray:
    """Every point whose context and next token end in ``ending``, found in the text."""
    at = LINE.index(ending) + len(ending) - 2
    return np.arange(12) * len(LINE) + at


def test_contexts_are_those_of_the_text(data):
    contexts = Contexts(data)
    point = int(points_of(data, "list:\n")[3])
    context, target = contexts.of(point)
    assert contexts.printed(context, target) == (LINE[: LINE.index("\n")], "\\n")
    assert contexts.printed(*contexts.of(point, 5)) == ("list:", "\\n")
    assert decode(contexts.behind(point), data.class_names) == "- h"


def test_a_character_of_several_tokens_is_printed_where_it_ends(data):
    names = (*data.class_names, *(bytes([byte]).decode("utf-8", "surrogateescape") for byte in (0xE2, 0x80, 0x9D)))
    first, second, third = range(len(data.class_names), len(names))
    contexts = Contexts(dataclasses.replace(data, class_names=names))
    a = data.class_names.index("a")
    assert contexts.printed([third, a, first, second], third) == ("a", "”")
    assert contexts.printed([a], first) == ("a", "\\xe2")
    assert contexts.printed([a, first], a) == ("a", "\\xe2a")


def test_points_are_grouped_by_next_token_and_shared_context(data):
    contexts = Contexts(data)
    after_colon, after_period = points_of(data, "list:\n"), points_of(data, "no.”")
    alone = points_of(data, "two: ")[:2]
    groups = token_groups(np.concatenate([after_period[:7], alone, after_colon]), contexts, smallest=5)
    assert [sorted(group.points.tolist()) for group in groups] == [after_colon.tolist(), after_period[:7].tolist()]
    assert [contexts.name(group) for group in groups] == [" a list:[\\n]", "aid “no.[”]"]


def test_a_group_is_divided_where_half_of_it_goes_on_together(data):
    contexts = Contexts(data)
    inside, outside = points_of(data, "no.”"), points_of(data, "yes”")
    groups = token_groups(np.concatenate([inside[:8], outside[:5]]), contexts, smallest=5)
    assert sorted(len(group.points) for group in groups) == [5, 8]
    groups = token_groups(np.concatenate([inside[:8], outside[:4]]), contexts, smallest=5)
    assert [sorted(group.points.tolist()) for group in groups] == [inside[:8].tolist()]
    (group,) = token_groups(np.concatenate([inside[:3], outside[:3]]), contexts, smallest=5)
    assert contexts.name(group) == "[”]"


def losses(data, opposed: bool) -> np.ndarray:
    """After a colon the losses of newline and " the" alternate; those of quotation marks move together, or not."""
    values = 1 + 1e-3 * np.random.default_rng(0).standard_normal((STEPS, data.inputs.numel()))
    sign = np.where(np.arange(STEPS) % 2, 1.0, -1.0)[:, None]
    values[:, points_of(data, "list:\n")] += 0.4 * sign
    values[:, points_of(data, "two: ")] -= 0.4 * sign
    values[:, points_of(data, "no.”")] += 0.1 * sign
    values[:, points_of(data, "yes”")] += (-0.1 if opposed else 0.2) * sign
    return values.astype(np.float32)


@pytest.fixture
def track(data, tmp_path):
    def make(opposed: bool = True, keep: int | None = None) -> TokenTrack:
        values = losses(data, opposed)
        points = np.arange(data.inputs.numel())
        with Record.writing(tmp_path / f"run-{keep}", {"keep": keep}) as record:
            record.append("token_points", 0, points)
            for step, row in enumerate(values[:-1]):
                if keep is None:
                    record.append("token_loss", step, row)
                    continue
                order = np.argsort(row - values[step + 1])  # the largest rise first
                top = np.stack([order[:keep], order[::-1][:keep]])
                record.append("token_top", step, top)
                record.append("token_top_loss", step, np.stack([row[top], values[step + 1][top]], axis=1))
                record.append("token_followed", step, np.stack([row, values[step + 1]]))
            if keep is None:
                record.append("token_loss", STEPS - 1, values[-1])
        return TokenTrack(record, data)

    return make


@pytest.mark.parametrize("keep", [None, 30])
def test_changes_are_those_of_the_losses(data, track, keep):
    found = track(keep=keep)
    expected = losses(data, True)
    np.testing.assert_allclose(found.changes.values, np.diff(expected, axis=0), atol=1e-6)
    assert found.before.steps.tolist() == list(range(STEPS - 1))
    rises, falls = found.largest(5, 4)
    changes = expected[6] - expected[5]
    np.testing.assert_allclose(rises.changes, np.sort(changes)[::-1][:4])
    np.testing.assert_allclose(falls.changes, np.sort(changes)[:4])


def test_the_papers_pairs_are_named(data, track):
    followed = track()
    found = followed.named("colon")
    assert found.pair.correlation < -0.99
    changes = followed.changes.at(found.pair.step)
    for name, group, rises in zip(found.names, found.pair.groups, (True, False), strict=True):
        expected = points_of(data, {"newline_after_colon": "list:\n", "the_after_colon": "two: "}[name])
        assert np.array_equal(np.sort(group), expected)
        assert (changes[group].mean() > 0) == rises
    assert followed.named("quotes").pair.correlation < -0.99


def test_a_named_pair_that_moves_together_has_a_positive_correlation(track):
    assert track(opposed=False).named("quotes").pair.correlation > 0.99


def test_sections_of_groups_that_move_together_say_so(track):
    found = track(opposed=False)
    one, other = (section.title for section in named_sections(found, found.named("quotes"), rows=4))
    assert ("the loss rises" in one) == ("the loss rises" in other)


def test_a_text_without_the_pattern_has_no_such_pair(data, track):
    found = track()
    found.points = found.points[: len(LINE) // 2]
    assert found.named("colon") is None


def test_opposing_groups_are_found_by_their_tokens(data, track):
    pairs = track().pairs
    first = pairs[0]
    assert sorted(name.split(" and ")[0] for name in first.names) == ["st:[\\n]", "wo:[ ]"]
    assert first.pair.correlation < -0.99
    assert first.pair.p_value < 0.05
    for ending in ("list:\n", "two: "):
        assert any(np.isin(points_of(data, ending), group).all() for group in first.pair.groups)
    assert all(other.pair.amplitude <= first.pair.amplitude for other in pairs)


def test_tables_show_contexts_targets_and_losses(data, track):
    found = track()
    pair = found.named("colon")
    rising, falling = named_sections(found, pair, rows=4)
    assert f"the loss rises by 0.80 at step {pair.pair.step}, mean of 12" in rising.title
    assert [len(section.examples) for section in (rising, falling)] == [4, 4]
    assert {example.target for example in (*rising.examples, *falling.examples)} == {"\\n", " "}
    for example in rising.examples:
        assert example.context.endswith(("And a list:", "We had two:"))
        assert example.after - example.before == pytest.approx(0.8, abs=0.02)
        assert f"{example.before:6.2f} → {example.after:5.2f}" in rising.as_text()
    titles = [section.title for section in found_sections(found, pair.pair.step, largest=12, rows=3)]
    assert len(titles) == 2
    assert all("12 of the 12 largest" in title for title in titles)
