import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from recording import made

from opposing_signals.studies import style
from opposing_signals.studies.claim import Verdict

RUN = {"run": {"name": "mine"}}
RESNET, VGG = ({"_target_": f"opposing_signals.models.{name}"} for name in ("resnet18", "vgg11"))


def title(width, text):
    return style.figure(width, 3, text).get_suptitle()


@pytest.mark.parametrize(
    ("networks", "sizes", "expected"),
    [
        ([RESNET | {"width": 16}], [0.1], "ResNet-18 (width 16 of 64), drawn, η = 0.1"),
        ([RESNET | {"width": 64}] * 3, [0.1, 0.2, 0.4], "ResNet-18, drawn, η = 0.1, 0.2 and 0.4"),
        ([RESNET | {"width": 8}, VGG | {"width": 8}], [1, 1], "ResNet-18 and VGG-11 (width 8 of 64), drawn, η = 1"),
    ],
)
def test_a_title_names_networks_with_their_widths_data_and_step_sizes(tmp_path, networks, sizes, expected):
    runs = {
        str(i): made(tmp_path / str(i), {**RUN, "model": model, "optimizer": {"lr": lr}}, {"data": {"name": "drawn"}})
        for i, (model, lr) in enumerate(zip(networks, sizes, strict=True))
    }
    assert style.about("Losses", runs) == f"Losses: {expected}"


def test_another_rule_than_gradient_descent_is_named_beside_its_step_size(tmp_path):
    adam = {"_target_": "torch.optim.Adam", "lr": 0.001}
    runs = {
        str(i): made(tmp_path / str(i), {**RUN, "optimizer": optimizer}, {"data": {"name": "drawn"}})
        for i, optimizer in enumerate([{"_target_": "torch.optim.SGD", "lr": 0.1}, adam])
    }
    assert style.about("Losses", runs).endswith("η = 0.1 and Adam η = 0.001")


def test_the_look_ends_with_its_context():
    with matplotlib.rc_context({"lines.linewidth": 9}):
        with style.look():
            assert matplotlib.rcParams["lines.linewidth"] < 9
        assert matplotlib.rcParams["lines.linewidth"] == 9


def test_a_title_that_fits_stays_as_it_is():
    assert title(13, "A block of sky\nResNet-18") == "A block of sky\nResNet-18"


def test_a_title_that_does_not_fit_is_broken_into_lines_of_about_the_same_length():
    lines = title(6.0, "ResNet-32 of width 8, cifar10 (5000 of 50000 images), batch 128").splitlines()
    assert len(lines) == 2
    assert abs(len(lines[0]) - len(lines[1])) < 12


@pytest.mark.parametrize("text", ["a = 12345678 b", "./probes/my_own_picture_of_grass.png seen", "word"])
def test_no_word_is_cut(text):
    assert title(2, text).replace("\u00a0", " ").split() == text.split()


@pytest.mark.parametrize("width", [3, 4, 5, 6, 7, 8])
def test_an_equation_and_what_stands_in_parentheses_stay_on_one_line(width):
    text = "A block of white passed through a network: cifar10 (500 images), η = 0.1"
    lines = title(width, text).replace("\u00a0", " ").splitlines()
    assert lines[-1].endswith("η = 0.1")
    assert any("(500 images)" in line for line in lines)
    assert " ".join(lines) == text


def verdict(statement, value, found, interval=None, by_seed=()):
    known = {"interval": interval, "by_seed": list(by_seed)}
    return Verdict("id", statement, "", "", "< -0.8", value, verdict=found, scale="smoke", data="", seed=1, **known)


def test_each_verdict_stands_under_the_panels_and_leaves_them_their_size():
    seeds = [{"verdict": "PASS"}, {"verdict": "FAIL"}]
    verdicts = [
        verdict("They oppose", -0.91234, "PASS", [-0.95, -0.87]),
        verdict("They do not", None, "INCONCLUSIVE"),
        verdict("word " * 50, -0.5, "FAIL", None, seeds),
    ]
    figure, bare = (style.figure(9, 4, "network, data, η = 0.1") for _ in range(2))
    axes, alone = figure.subplots(), bare.subplots()
    style.name_verdicts(figure, verdicts)
    lines = figure.get_supxlabel().splitlines()
    assert lines[0] == "PASS (-0.9123, claimed < -0.8; 95% interval -0.95 to -0.87): They oppose"
    assert lines[1] == "INCONCLUSIVE (no value, claimed < -0.8): They do not"
    assert lines[2].startswith("FAIL (-0.5, claimed < -0.8; passes in 1 of 2 seeds): word word")
    assert " ".join(lines[2:]).split().count("word") == 50
    assert max(map(len, lines)) <= 15 * 9
    for one in (figure, bare):
        FigureCanvasAgg(one).draw()
    renderer = figure.canvas.get_renderer()
    assert figure._supxlabel.get_window_extent(renderer).y1 <= axes.get_tightbbox(renderer).y0
    assert axes.get_window_extent().height == pytest.approx(alone.get_window_extent().height, rel=0.1)


def test_failures_stand_below_the_verdicts():
    figure = style.figure(11, 4, "network")
    figure.subplots()
    failures = {"job1": "the training loss is nan at step 3", "job2": "word " * 100}
    style.name_verdicts(figure, [verdict("They oppose", 0.5, "PASS")], failures)
    lines = figure.get_supxlabel().splitlines()
    assert lines[:2] == ["PASS (0.5, claimed < -0.8): They oppose", "job1 failed: the training loss is nan at step 3"]
    assert lines[2].startswith("job2 failed: word")
    assert lines[2].endswith("…")
    assert len(lines[2]) < 15 * 11


def test_runs_differ_by_more_than_their_colour():
    shown = style.looks("abcdef").values()
    assert len({str(look["linestyle"]) for look in shown}) == len({look["color"] for look in shown}) == 6


def test_no_verdicts_leave_the_title_as_it_is():
    figure = style.figure(9, 4, "network")
    style.name_verdicts(figure, [])
    assert figure.get_supxlabel() == ""


@pytest.mark.parametrize("columns", [1, 3])
def test_a_legend_covers_neither_curve_nor_title(columns):
    figure = style.figure(6, 4, "network")
    axes = figure.subplots()
    for name in ("one", "two", "three"):
        axes.plot([0, 1], [0, 1], label=name)
    axes.set_title("losses")
    style.legend_above(axes, columns)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    legend = axes.get_legend().get_window_extent(renderer)
    title = next(text for text in (axes._left_title, axes.title) if text.get_text())
    assert legend.y0 >= axes.get_window_extent(renderer).y1
    assert legend.y1 <= title.get_window_extent(renderer).y0 + 2


def test_a_large_picture_gets_a_palette_and_keeps_its_pixels(tmp_path, monkeypatch):
    figure = style.figure(3, 2, "Photographs")
    shown = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    figure.subplots().imshow(shown)
    saved = {}
    for limit in (10**9, 10**4):
        monkeypatch.setattr(style, "LARGEST_PNG", limit)
        style.save(figure, tmp_path / f"{limit}.png")
        saved[limit] = Image.open(tmp_path / f"{limit}.png")
    style.save(figure, tmp_path / "figure.pdf")
    assert (saved[10**4].mode, saved[10**9].mode) == ("P", "RGBA")
    assert saved[10**4].size == saved[10**9].size
    before, after = (np.asarray(saved[limit].convert("RGB")).astype(float) for limit in saved)
    assert np.abs(before - after).mean() < 8
    assert (tmp_path / "10000.png").stat().st_size < 0.6 * (tmp_path / "1000000000.png").stat().st_size
    assert (tmp_path / "figure.pdf").read_bytes().startswith(b"%PDF")
