import html
import re

import numpy as np
import pytest
from recording import made

from opposing_signals.data import text_demo
from opposing_signals.data.token_patterns import pattern_points
from opposing_signals.signals import Trajectory
from opposing_signals.studies.text.figures import adam_and_splitsgd, token_losses, token_pair, token_tables

STEPS = 40


@pytest.fixture
def run(tmp_path):
    def make(name: str, **series: np.ndarray) -> dict[str, Trajectory]:
        configuration = {"run": {"name": name}, "data": {"_target_": "opposing_signals.data.text_demo"}}
        configuration["optimizer"] = {"lr": 0.001}
        return {name: made(tmp_path / name, configuration, {"data": {"name": "drawn sentences"}}, **series)}

    return make


@pytest.fixture
def tracked(run):
    """The losses of newline and " the" after a colon alternate, twelve points each."""
    data = text_demo()
    groups = [pattern_points(data, name)[:12] for name in ("newline_after_colon", "the_after_colon")]
    points = np.unique(np.concatenate([*groups, np.arange(800)]))
    values = np.ones((STEPS, len(points)), np.float32) + np.random.default_rng(0).random(len(points), np.float32)
    sign = np.where(np.arange(STEPS) % 2, 1.0, -1.0)[:, None]
    for group, size in zip(groups, (0.5, -0.5), strict=True):
        values[:, np.isin(points, group)] += size * sign
    return run("gpt2", token_points=[points], token_loss=values)


def drawn_texts(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_a_named_pair_is_drawn_with_contexts_and_losses(tracked):
    figure = token_pair(tracked, "colon", "New line or the", rows=5)
    losses, *tables = figure.axes
    track = tracked["gpt2"].tokens
    pair = track.named("colon").pair
    expected = track.before.values[:, pair.rising].mean(1)
    assert any(np.allclose(line.get_ydata(), expected[: len(line.get_ydata())]) for line in losses.lines)
    assert "correlation of its changes -1.00" in losses.get_title(loc="left")
    for axes, rises in zip(tables, (True, False), strict=True):
        title, *cells = drawn_texts(axes)
        assert ("rises by 1.00" if rises else "falls by 1.00") in title
        assert len(cells) == 3 * 5
        assert all(context.endswith(":") for context in cells[::3])
        assert set(cells[1::3]) in ({"[\\n]"}, {"[ ]"})


def test_a_text_without_the_pair_is_said_to_have_none(run):
    nothing = run("nothing", token_points=[np.arange(3)], token_loss=np.ones((STEPS, 3), np.float32))
    figure = token_pair(nothing, "colon", "New line or the")
    assert "lacks one of the two patterns" in figure.texts[-1].get_text()
    assert token_losses(nothing, ["colon", "quotes"]).axes


def test_every_pair_has_its_two_panels(tracked):
    figure = token_losses(tracked, ["colon"])
    pairs = [tracked["gpt2"].tokens.named("colon"), *tracked["gpt2"].tokens.pairs]
    assert len(figure.axes) == 2 * len(pairs)
    assert [label.get_text() for label in figure.axes[0].get_legend().get_texts()][:2] == [
        name.replace("_", " ") for name in pairs[0].names
    ]


def test_tables_are_written_as_text_and_as_a_page(tracked, tmp_path):
    token_tables(tracked, tmp_path, "colon", rows=4, largest=24)
    text = (tmp_path / "tables.txt").read_text()
    page = (tmp_path / "tables.html").read_text()
    step = tracked["gpt2"].tokens.named("colon").pair.step
    assert f"at step {step} and after it: gpt2, drawn sentences" in text
    assert "newline after colon: the loss" in text
    assert ":[\\n]: 12 of the 24 largest" in text
    assert page.count("<table>") == page.count("</table>") == text.count("\n\n")
    assert "http" not in page.replace("http-equiv", "")
    contexts = [line[2:74].strip() for line in text.splitlines() if line.startswith("  ")]
    cells = [html.unescape(cell) for cell in re.findall('<td class="context">(.*?)</td>', page)]
    assert [cell[-72:].strip() for cell in cells] == contexts
    assert any('"' in context for context in contexts)


def test_two_optimizers_are_drawn_and_a_missing_one_is_named(run):
    noise = np.random.default_rng(0).random(STEPS)
    runs = run("gpt2_adam", train_loss=noise) | run("gpt2_splitsgd", train_loss=noise, signed_share=noise)
    loss, oscillation, share = adam_and_splitsgd(runs).axes
    assert [len(axes.lines) for axes in (loss, oscillation, share)] == [2, 2, 1]
    np.testing.assert_array_equal(share.lines[0].get_ydata(), noise)
    _, oscillation, _ = adam_and_splitsgd(runs | run("longer", train_loss=np.append(noise, noise)), adam="longer").axes
    assert len({tuple(line.get_xdata()) for line in oscillation.lines}) == 1
    loss, *_ = adam_and_splitsgd({"gpt2_adam": runs["gpt2_adam"]}).axes
    assert "SplitSGD: no run" in [text.get_text() for text in loss.get_legend().get_texts()]
