import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.text import Text
from probing import ADAM, probed

from opposing_signals.data import planted
from opposing_signals.record import Record
from opposing_signals.signals import Trajectory
from opposing_signals.studies.probes.figures import (
    block_probe,
    colour_neighbours,
    probe_family,
    probe_under_adam,
    probe_under_flow,
)
from opposing_signals.studies.probes.paths import probe_path

STEPS, BREAK_EVEN, CLASSES = 24, 8, 6
SHARPNESS = np.where(np.arange(STEPS) < BREAK_EVEN, 1.0, 20.0)
PROBES = ("sky", "red")


@pytest.fixture
def run(tmp_path):
    """A run with two probes on the six classes of drawn data; the second's probabilities jump at steps 3 and 15."""

    def make(name="run", **settings) -> dict[str, Trajectory]:
        generator = np.random.default_rng(len(name))
        norms = {probe: generator.uniform(1, 2, STEPS) for probe in PROBES}
        logits = {probe: np.tile(generator.normal(size=CLASSES), (STEPS, 1)) for probe in PROBES}
        logits["red"][3, 0] += 8
        logits["red"][15, 0] += 1
        settings = {"sharpness": SHARPNESS, "train_loss": np.geomspace(2, 0.1, STEPS), **settings}
        return {name: probed(tmp_path / name, norms, logits, np.linspace(1, 3, STEPS), **settings)}

    return make


def titled(figure) -> dict:
    return {axes.get_title(loc="left"): axes for axes in figure.axes}


def drawn(axes) -> dict[str, np.ndarray]:
    return {line.get_label(): np.asarray(line.get_ydata()) for line in axes.lines}


def test_input_logits_probabilities_and_norm_of_one_probe(run):
    trajectories = run()
    path = probe_path(trajectories["run"], "red")
    panels = titled(block_probe(trajectories, "red"))
    np.testing.assert_array_equal(panels["input"].images[0].get_array(), path.picture)
    lines = panels["class logits"].lines
    assert len(lines) == CLASSES + 1
    np.testing.assert_array_equal([line.get_ydata() for line in lines[:-1]], path.logits.T)
    assert list(lines[-1].get_xdata()) == [BREAK_EVEN] * 2
    norms = drawn(panels["feature norm"])
    np.testing.assert_array_equal(norms["input"], path.norm)
    np.testing.assert_array_equal(norms["mean over the training data"], path.mean_norm)


def test_the_two_iterations_are_named_and_lie_after_break_even(run):
    trajectories = run()
    path = probe_path(trajectories["run"], "red")
    panels = titled(block_probe(trajectories, "red"))
    bars = {title: axes for title, axes in panels.items() if title.startswith("step ")}
    bold = [title for title, axes in bars.items() if _is_bold(axes, title)]
    step = path.shown_step(BREAK_EVEN)
    assert 15 in (step, step + 1)
    assert bold == [f"step {step}", f"step {step + 1}"]
    assert list(bars) == [f"step {step + offset}" for offset in (-1, 0, 1, 2)]
    for offset, axes in zip((-1, 0, 1, 2), bars.values(), strict=True):
        heights = [bar.get_height() for bar in axes.patches]
        np.testing.assert_allclose(heights, path.probabilities[step + offset])
    assert [label.get_text() for label in axes.get_xticklabels()] == list(trajectories["run"].dataset.class_names)


def _is_bold(axes, title: str) -> bool:
    (text,) = axes.findobj(lambda artist: isinstance(artist, Text) and artist.get_text() == title)
    return text.get_fontweight() == "bold"


def test_the_classes_that_lead_have_a_colour_each_and_the_others_are_grey(run):
    trajectories = run()
    path = probe_path(trajectories["run"], "red")
    figure = block_probe(trajectories, "red")
    panels = titled(figure)
    colours = [line.get_color() for line in panels["class logits"].lines[:CLASSES]]
    step = path.shown_step(BREAK_EVEN)
    leading = {label for label in range(CLASSES) if colours.count(colours[label]) == 1}
    assert len(leading) == 3
    assert set(path.logits[[step, step + 1]].argmax(1).tolist()) <= leading
    assert len({colours[label] for label in set(range(CLASSES)) - leading}) == 1
    for bar, colour in zip(panels[f"step {step}"].patches, colours, strict=True):
        assert to_hex(bar.get_facecolor()) == to_hex(colour)
    (legend,) = (axes.get_legend() for axes in figure.axes if axes.get_legend() and not axes.axison)
    names = [trajectories["run"].dataset.class_names[label] for label in sorted(leading)]
    assert [text.get_text() for text in legend.texts] == [*names, "other classes"]


def test_without_break_even_the_whole_run_is_looked_at(run):
    panels = titled(block_probe(run(sharpness=np.ones(STEPS)), "red"))
    assert {"step 2", "step 3"} < set(panels)
    assert panels["class logits"].get_xlabel() == "step"


def test_too_few_steps_for_an_alternation_are_said(tmp_path):
    trajectories = {"run": probed(tmp_path, {"sky": np.ones(3)}, {"sky": np.zeros((3, CLASSES))})}
    assert "probabilities: no four successive steps measured" in titled(block_probe(trajectories, "sky"))


def test_flow_and_descent_over_time(run):
    trajectories = run("flow") | run("descent", optimizer={"_target_": "torch.optim.SGD", "lr": 0.1})
    panels = titled(probe_under_flow(trajectories, "sky", flow="flow", descent="descent"))
    assert {"class logits, gradient flow", "class logits, gradient descent"} < set(panels)
    norms = panels["feature norm"]
    for name, label in (("flow", "input, flow"), ("descent", "input, descent")):
        np.testing.assert_array_equal(drawn(norms)[label], probe_path(trajectories[name], "sky").norm)
    np.testing.assert_allclose(norms.lines[0].get_xdata(), 0.1 * np.arange(STEPS))
    assert norms.lines[-1].get_xdata()[0] == pytest.approx(0.1 * BREAK_EVEN)
    alone = {"descent": trajectories["descent"]}
    assert "class logits, gradient flow" not in titled(probe_under_flow(alone, "sky", flow="flow", descent="descent"))


def test_adam_beside_descent(run):
    trajectories = run("adam", optimizer=ADAM) | run("descent", train_loss=np.geomspace(2, 0.4, STEPS))
    panels = titled(probe_under_adam(trajectories, "sky", adam="adam", descent="descent"))
    path = probe_path(trajectories["adam"], "sky")
    np.testing.assert_array_equal(drawn(panels["feature norm under Adam"])["input"], path.norm)
    both = [line.get_ydata() for line in panels["feature norm of the input"].lines]
    np.testing.assert_array_equal(both, [probe_path(trajectories[name], "sky").norm for name in ("adam", "descent")])
    probabilities = [line.get_ydata() for line in panels["class probabilities"].lines]
    np.testing.assert_array_equal(probabilities, path.probabilities.T)
    alternation = panels["alternating change of probabilities"].lines[0]
    np.testing.assert_array_equal(alternation.get_ydata(), path.alternation.values)
    decline = panels["norm over its peak so far"]
    np.testing.assert_allclose(drawn(decline)["Adam"], path.level / np.maximum.accumulate(path.level))
    assert decline.lines[-1].get_xdata()[0] == pytest.approx(0.4)
    alone = {"descent": trajectories["descent"]}
    assert "norm over its peak so far" not in titled(probe_under_adam(alone, "sky", adam="adam", descent="descent"))


def test_a_row_a_network_and_a_column_a_block(run):
    trajectories = run("one") | run("other", sharpness=np.ones(STEPS))
    figure = probe_family(trajectories, PROBES)
    panels = [axes for axes in figure.axes if axes.lines]
    assert len(panels) == 4
    assert panels[0].get_title(loc="left").startswith("sky\nrises 1.")
    assert "lag-1 correlation -0." in panels[1].get_title(loc="left")
    assert panels[3].get_title(loc="left").endswith("lag-1 correlation -")
    np.testing.assert_array_equal(panels[2].lines[0].get_ydata(), probe_path(trajectories["other"], "sky").norm)


def test_the_images_nearest_to_a_colour_are_shown(tmp_path):
    data = planted(images=12)
    configuration = {
        "data": {"_target_": "opposing_signals.data.planted", "images": 12},
        "neighbours": {"colours": ["green", "sky_in_data"]},
    }
    with Record.writing(tmp_path, configuration) as writer:
        writer.write_provenance({"data": {"name": data.name}})
        for step, nearest in enumerate(([3, 5, 7], [2, 4, 6])):
            writer.append("colour", step, np.array([0, 255, step], np.uint8))
            writer.append("neighbour", step, np.array(nearest))
            writer.append("neighbour_distance", step, np.array([1.0, 2.0, 33.3]))
    figure = colour_neighbours({"run": Trajectory(Record(tmp_path))})
    shown = np.array(figure.axes).reshape(2, 4)
    assert shown[1, 0].get_title(loc="left") == "sky in data\n(0, 255, 1)"
    np.testing.assert_array_equal(shown[0, 2].images[0].get_array(), data.images[5])
    assert shown[1, 3].get_title(loc="left") == f"{data.class_names[int(data.targets[6])]}\n33"
