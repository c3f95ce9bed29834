"""The explorer from a user's view: in headless Chromium, from the file system, with mouse and keyboard."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, Browser
from fabricated import run, write_result
from PIL import Image
from recorded import alternating, write_record

from opposing_signals.data import planted
from opposing_signals.record import Record, Series
from opposing_signals.record.quantities import TEST_ACCURACY
from opposing_signals.report import build
from opposing_signals.signals import OpposingPair, find_pairs, outliers_of

pytestmark = pytest.mark.slow

STEP = "document.getElementById('step-title').textContent"
IDS = "[...document.querySelectorAll('[data-side={side}] button')].map((button) => Number(button.dataset.id))"


@pytest.fixture(scope="module")
def losses() -> np.ndarray:
    return alternating()


@pytest.fixture(scope="module")
def report(tmp_path_factory, losses) -> Path:
    """A report of four runs: with pictures, with text, without losses, and one that was moved without its data."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium to use the page: install chromium")
    outputs = tmp_path_factory.mktemp("browser")
    text = {"_target_": "opposing_signals.data.text_demo", "sentences": 500}
    folder = write_record(outputs / "runs" / "pictures", losses)
    with Record.writing(folder, Record(folder).configuration) as record:
        for step in range(0, 60, 10):
            record.append(TEST_ACCURACY, step, step / 100)
    runs = {"planted_mlp": {**run(), "folder": "pictures"}}
    write_result(outputs / "fig01_group_losses", title="Figure 1: groups", runs=runs)
    write_record(outputs / "runs" / "text", alternating(steps=40, points=279), data=text, sharpness=False)
    write_record(outputs / "runs" / "nothing", None, sharpness=False, state=None)
    build([outputs], outputs / "report" / "index.html")
    moved = outputs / "report" / "runs" / "moved"
    moved.mkdir()
    (moved / "index.html").write_bytes((moved.parent / "pictures" / "index.html").read_bytes())
    return outputs / "report"


@pytest.fixture(scope="module")
def browser(report, tmp_path_factory):
    started = Browser(tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


@pytest.fixture
def pictures(browser, report):
    """The explorer of the run with pictures, and the reader of what a step shows."""

    def opened(fragment: str = "", **size: int) -> Browser:
        browser.open(report / "runs" / "pictures" / "index.html", fragment, **size)
        return browser

    yield opened
    assert browser.errors == []


def shown(browser: Browser, step: int) -> tuple[list[int], list[int]]:
    """Risers and fallers on the page, once they are those of ``step``."""
    for side in ("risers", "fallers"):
        browser.wait(f"document.querySelector('[data-side={side}]')?.dataset.step === '{step}'")
    return tuple(browser.evaluate(IDS.format(side=side)) for side in ("risers", "fallers"))


def dominant(losses: np.ndarray) -> OpposingPair:
    changes = Series(np.arange(len(losses) - 1), np.diff(losses, axis=0))
    return max((outliers_of(pair, changes) for pair in find_pairs(changes)), key=lambda pair: pair.amplitude)


def selected(losses: np.ndarray, step: int) -> tuple[list[int], list[int]]:
    change = losses[step + 1] - losses[step]
    order = np.argsort(change, kind="stable")
    return order[::-1][:24].tolist(), order[:24].tolist()


def test_the_page_of_all_results_leads_to_the_explorer(browser, report, losses) -> None:
    browser.open(report / "index.html")
    browser.click("li a[href='runs/pictures/index.html']")
    browser.wait("location.pathname.endsWith('/runs/pictures/index.html') && document.readyState === 'complete'")
    pair = dominant(losses)
    assert shown(browser, pair.step) == selected(losses, pair.step)
    assert browser.evaluate("location.hash") == f"#step={pair.step}"
    assert all(address.startswith("file://") for address in browser.loaded)


def test_a_click_on_a_step_shows_its_risers_and_fallers(pictures, losses) -> None:
    browser = pictures()
    width = browser.evaluate("document.getElementById('loss').clientWidth")
    for step in (17, 44):
        browser.click("#loss", (60 + (width - 76) * step / 59) / width)
        assert shown(browser, step) == selected(losses, step)
        assert browser.evaluate(STEP) == f"Step {step}"
    dataset = planted(300)
    classes = Counter(dataset.class_names[int(dataset.targets[i])] for i in selected(losses, 44)[0])
    shown_classes = browser.evaluate("document.querySelector('#step-groups .muted').textContent")
    assert sorted(shown_classes.split(", ")) == sorted(f"{times} × {name}" for name, times in classes.items())
    values = browser.evaluate(
        "[...document.querySelectorAll('[data-side=risers] .value')].map((value) => value.textContent)"
    )
    change = np.sort(losses[45] - losses[44])[::-1][:24]
    assert [float(value) for value in values] == pytest.approx(change, rel=5e-3)


def test_keys_move_the_step(pictures, losses) -> None:
    browser = pictures("#step=30")
    for key, step in (("ArrowRight", 31), ("ArrowRight", 32), ("ArrowLeft", 31)):
        browser.press(key)
        assert shown(browser, step) == selected(losses, step)
    assert browser.evaluate("location.hash") == "#step=31"


def test_a_click_on_a_pair_shows_its_members_and_losses(pictures, losses) -> None:
    browser = pictures("#step=5")
    browser.click("#pairs .row button")
    browser.wait("document.querySelectorAll('#pair-groups [data-pair=\"1\"]').length === 2")
    pair = dominant(losses)
    for number, group in enumerate(pair.groups):
        cards = f"[...document.querySelectorAll('#pair-groups ul')[{number}].querySelectorAll('button')]"
        assert browser.evaluate(f"{cards}.map((button) => Number(button.dataset.id))") == group.tolist()
        values = browser.evaluate(f"{cards}.map((button) => Number(button.children[2].textContent.replace('−', '-')))")
        change = losses[pair.step + 1, group] - losses[pair.step, group]
        assert values == pytest.approx(change.tolist(), rel=5e-3)
    assert f"Correlation of the groups' one-step changes −{abs(pair.correlation):.3g}" in browser.evaluate(
        "document.getElementById('pair-facts').textContent"
    )
    browser.click("#pair-step")
    assert shown(browser, pair.step) == selected(losses, pair.step)
    browser.press("Escape")
    assert browser.evaluate("document.getElementById('pair').hidden")


def test_everything_is_within_reach_of_the_keyboard(pictures) -> None:
    browser = pictures("#step=30")
    shown(browser, 30)
    visited = []
    focused = (
        "(({id, className, parentElement}) => id || className || parentElement.className"
        " || parentElement.parentElement.dataset.side)(document.activeElement)"
    )
    browser.evaluate("document.querySelector('.back').focus()")
    while "find-id" not in visited:
        browser.press("Tab")
        visited.append(browser.evaluate(focused))
        assert len(visited) < 120
    names = ("log", "zoom-in", "row", "step-back", "slider", "step-on", "risers", "fallers")
    order = [visited.index(name) for name in names]
    assert order == sorted(order)
    assert visited.count("risers") == visited.count("fallers") == 24


def test_enter_opens_a_training_example_and_escape_closes_it(pictures, losses) -> None:
    browser = pictures("#step=30")
    risers, _ = shown(browser, 30)
    browser.evaluate("document.querySelector('[data-side=risers] button').focus()")
    browser.press("Enter")
    browser.wait("document.getElementById('example').open")
    assert browser.evaluate("document.getElementById('example-title').textContent") == f"Training example {risers[0]}"
    changes = np.diff(losses, axis=0)
    rises = sum(risers[0] in selected(losses, step)[0] for step in range(59))
    falls = sum(risers[0] in selected(losses, step)[1] for step in range(59))
    facts = browser.evaluate("document.getElementById('example-facts').textContent")
    assert f"risers at {rises} steps, among the fallers at {falls}, of {len(changes)}" in facts
    assert browser.evaluate("location.hash") == f"#step=30&example={risers[0]}"
    browser.press("Escape")
    browser.wait("!document.getElementById('example').open && location.hash === '#step=30'")
    assert browser.evaluate("document.activeElement.dataset.id") == str(risers[0])


def test_a_view_can_be_linked(pictures, losses) -> None:
    browser = pictures("#step=12&pair=1&from=10&to=40&log=1&example=3")
    assert shown(browser, 12) == selected(losses, 12)
    browser.wait("document.getElementById('example').open")
    assert browser.evaluate("location.hash") == "#step=12&pair=1&from=10&to=40&log=1&example=3"
    assert browser.evaluate("document.getElementById('range').textContent") == "steps 10 to 40"
    assert browser.evaluate("document.getElementById('log').checked")
    browser.open(Path(browser.evaluate("decodeURI(location.pathname)")), "#step=999&pair=7&from=x&to=3&example=99999")
    assert shown(browser, 58) == selected(losses, 58)
    assert browser.evaluate("location.hash") == "#step=58&from=0&to=3"
    browser.wait("document.getElementById('find-answer').textContent.includes('their numbers are 0 to 299')")


def choose(browser: Browser, field: str, value: str) -> None:
    browser.evaluate(
        f"{{const field = document.getElementById({field!r}); field.value = {value!r};"
        "field.dispatchEvent(new Event('change', {bubbles: true}));}"
    )


def test_another_quantity_is_drawn_and_told_under_the_pointer(pictures) -> None:
    browser = pictures("#step=30")
    choose(browser, "also-name", "test_accuracy")
    browser.wait("!document.getElementById('also').hidden")
    assert "test set classified" in browser.evaluate("document.getElementById('also-legend').textContent")
    assert browser.evaluate("location.hash") == "#step=30&also=test_accuracy"
    width = browser.evaluate("document.getElementById('loss').clientWidth")
    browser.click("#loss", (60 + (width - 76) * 30 / 59) / width)
    assert "test_accuracy 0.3" in browser.evaluate("document.getElementById('tip').textContent")


def test_two_runs_are_compared(pictures) -> None:
    browser = pictures("#step=30")
    browser.wait("!document.getElementById('compare-choice').hidden")
    choose(browser, "compare", "text")
    browser.wait("document.getElementById('legend').textContent.includes('train loss of text')")
    assert browser.evaluate("location.hash") == "#step=30&compare=text"
    assert browser.evaluate(STEP) == "Step 30"


def test_examples_of_one_class_are_shown(pictures, losses) -> None:
    browser = pictures("#step=30")
    risers, _ = shown(browser, 30)
    dataset = planted(300)
    name = dataset.class_names[int(dataset.targets[risers[0]])]
    choose(browser, "class", name)
    browser.wait("document.querySelectorAll('[data-side=risers] li[hidden]').length > 0")
    visible = "[...document.querySelectorAll('[data-side=risers] li')].filter((item) => !item.hidden)"
    ids = browser.evaluate(f"{visible}.map((item) => Number(item.firstChild.dataset.id))")
    assert ids == [point for point in risers if dataset.class_names[int(dataset.targets[point])] == name]


def test_each_pair_shows_its_members_in_the_first_view(pictures, losses) -> None:
    browser = pictures("#step=30")
    browser.wait("document.querySelectorAll('#pair-cards .picture').length > 0")
    pair = dominant(losses)
    expected = sum(min(6, len(group)) for group in pair.groups)
    pictured = "document.querySelector('#pair-cards button').querySelectorAll('.picture').length"
    browser.wait(f"{pictured} === {expected}")
    assert browser.evaluate("document.querySelector('#pair-cards .picture').getBoundingClientRect().bottom") < 900
    browser.click("#pair-cards button")
    assert browser.evaluate("location.hash") == "#step=30&pair=1"


def test_a_figure_leads_to_a_step_and_back(browser, report, losses) -> None:
    step = dominant(losses).step
    browser.open(report / "index.html", "#fig01_group_losses")
    link = f"a[href='runs/pictures/index.html#step={step}&pair=1']"
    browser.click(link)
    browser.wait("location.pathname.endsWith('/runs/pictures/index.html') && document.readyState === 'complete'")
    assert shown(browser, step) == selected(losses, step)
    browser.wait("!document.getElementById('figures').hidden")
    browser.click("#figures a")
    browser.wait("location.hash === '#fig01_group_losses'")
    assert browser.errors == []


def test_a_drag_zooms(pictures) -> None:
    browser = pictures("#step=30")
    width = browser.evaluate("document.getElementById('loss').clientWidth")
    start, stop = ((60 + (width - 76) * step / 59) / width for step in (20, 45))
    browser.drag("#sharpness", start, stop)
    assert browser.evaluate("location.hash") == "#step=30&from=20&to=45"
    browser.press("0")
    assert browser.evaluate("location.hash") == "#step=30"


def test_only_what_is_shown_is_loaded(pictures, report) -> None:
    browser = pictures("#step=30")
    shown(browser, 30)
    data = f"{report.as_uri()}/runs/pictures/data-"
    loaded = {address.partition(data)[2].partition("/")[2] for address in browser.loaded if address.startswith(data)}
    assert {"run.js", "steps/0000.js"} < loaded
    assert not any(name.startswith(("series/", "ids", "steps/0001")) for name in loaded)


@pytest.mark.parametrize("width", [390, 1280])
def test_lines_are_drawn_and_nothing_scrolls_sideways(pictures, width) -> None:
    browser = pictures("#step=30&pair=1", width=width)
    shown(browser, 30)
    browser.wait("document.querySelectorAll('#pair-groups [data-pair=\"1\"]').length === 2")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    for canvas in ("loss", "sharpness", "change", "pair-chart"):
        colours = browser.evaluate(
            f"(() => {{ const canvas = document.getElementById('{canvas}');"
            "const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);"
            "return new Set(new Uint32Array(data.buffer)).size; })()"
        )
        assert colours > 20, f"{canvas} is empty"


def test_the_screen_shows_the_picture_of_the_training_example(pictures, tmp_path) -> None:
    browser = pictures("#step=30")
    (first, *_), _ = shown(browser, 30)
    left, top, size = browser.evaluate(
        "(() => { const frame = document.querySelector('[data-side=risers] .picture');"
        "frame.scrollIntoView({block: 'center', behavior: 'instant'});"
        "const {left, top, width} = frame.getBoundingClientRect(); return [left, top, width]; })()"
    )
    browser.screenshot(tmp_path / "page.png")
    screenshot = Image.open(tmp_path / "page.png").convert("RGB")
    picture = screenshot.crop((left, top, left + size, top + size)).resize((32, 32), Image.Resampling.BOX)
    images = planted(300).images
    assert images is not None
    distances = np.abs(images.astype(float) - np.asarray(picture, float)).mean((1, 2, 3))
    assert distances.argmin() == first


def test_text(browser, report) -> None:
    browser.open(report / "runs" / "text" / "index.html", "#step=20")
    shown(browser, 20)
    captions = browser.evaluate(
        "[...document.querySelectorAll('[data-side=risers] .caption')].map((text) => text.textContent)"
    )
    assert len(captions) == 24
    assert all(len(caption) == 64 for caption in captions)
    assert browser.evaluate("document.getElementById('sharpness').hidden")
    assert "sharpness was not recorded" in browser.evaluate("document.getElementById('notices').textContent")
    assert browser.errors == []


def test_what_cannot_be_shown_is_said(browser, report) -> None:
    browser.open(report / "runs" / "nothing" / "index.html")
    notices = browser.evaluate("document.getElementById('notices').innerText")
    assert "The run has not ended" in notices
    assert "No losses of training examples were recorded" in notices
    assert browser.evaluate("document.getElementById('overview').hidden && document.getElementById('step').hidden")
    assert browser.errors == []
    browser.open(report / "runs" / "moved" / "index.html")
    assert "cannot be loaded" in browser.evaluate("document.getElementById('summary').textContent")
