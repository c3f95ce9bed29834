from pathlib import Path

import pytest
from browser import CHROMIUM, Browser
from fabricated import run, verdict, write_result

from opposing_signals.report import build

pytestmark = pytest.mark.slow

MEASURE = """(async () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
  const pictures = [...document.images];
  for (const picture of pictures) picture.loading = "eager";
  await Promise.all(pictures.map((picture) => picture.decode()));
  return {
    viewport: innerWidth,
    width: document.documentElement.scrollWidth,
    body: document.body.scrollWidth,
    pictures: pictures.map((picture) => [picture.naturalWidth, picture.clientWidth]),
    buttons: [...document.querySelectorAll("button")].map((button) => button.getClientRects().length),
    cut: [...document.querySelectorAll("td, dd, li, pre, h1, h2, h3, p")]
      .filter((element) => element.scrollWidth > element.clientWidth + 1)
      .map((element) => element.outerHTML),
  };
})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("needs Chromium to render the page: install chromium")
    started = Browser(tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


@pytest.fixture(scope="module", params=(390, 1280))
def measured(browser, tmp_path_factory, request) -> dict:
    """Measurements by the browser on a page with extreme content."""
    folder = tmp_path_factory.mktemp("extreme")
    runs = {
        f"resnet56_sgd_{i}": run(
            optimizer={"_target_": "torch.optim.SGD", "lr": 10.0**-i, "momentum": i / 10, "dampening": i / 20},
            model={"_target_": "opposing_signals.models.resnet", "depth": 56 + i, "width": 16 + i},
            data={"_target_": "opposing_signals.data.cifar10", "images": 1000 * i},
        )
        for i in range(1, 9)
    }
    write_result(folder / "results" / "fig01_an_experiment_with_quite_a_long_name_" / "x", name="fig01" + "_long" * 20)
    write_result(folder / "results" / "fig39", runs=runs, size=(3000, 700), title="Long " * 40)
    extreme = {
        "statement": "Unbreakable" * 20,
        "statistic": "share_of_points; " * 20,
        "threshold": "in [-1.234e-05, 1.234e+05]",
    }
    extreme |= {"value": -1.2345e-5, "interval": [-1.2345e-5, 1.2345e105]}
    write_result(
        folder / "results" / "fig46",
        [verdict(f"fig46{i}", "PASS", **extreme) for i in range(30)],
        size=(200, 2000),
        command="opposing-signals experiment=fig46 " + "optimizer.lr=0.000000001," * 20,
    )
    (write_result(folder / "results" / "fig50") / "claims.json").write_text("broken")
    browser.open(build([folder / "results"], folder / "index.html"), width=request.param)
    return {"asked": request.param, **browser.evaluate(MEASURE)}


def test_page_does_not_scroll_sideways(measured) -> None:
    assert max(measured["width"], measured["body"]) <= measured["viewport"] == measured["asked"]


def test_no_text_is_cut_off(measured) -> None:
    assert measured["cut"] == []


def test_pictures_are_shown(measured) -> None:
    natural, shown = zip(*measured["pictures"], strict=True)
    assert natural == (1800, 3000, 200, 1800)
    assert min(shown) > 100


def test_commands_can_be_copied(measured) -> None:
    assert measured["buttons"] == [1, 1, 1, 1, 1], "four commands, and the filter's own"


@pytest.fixture(scope="module")
def page(browser, tmp_path_factory) -> tuple[Browser, Path]:
    """The page of three experiments on two networks, at two scales, in a browser."""
    folder = tmp_path_factory.mktemp("filter")
    vit = {"vit_gd": {**run(model={"_target_": "opposing_signals.models.vit"}), "folder": "vit"}}
    write_result(folder / "results" / "fig05_sky", [verdict("a", "PASS")], title="Figure 5: sky")
    write_result(folder / "results" / "fig15_grass", [verdict("b", "FAIL")], title="Figure 15: grass", scale="paper")
    write_result(folder / "results" / "vit" / "x", [verdict("c", "PASS")], name="fig15_grass", runs=vit)
    write_result(folder / "results" / "theory", [verdict("d", "PASS"), verdict("e", "FAIL")], runs={})
    return browser, build([folder / "results"], folder / "index.html")


SHOWN = (
    "[...document.querySelectorAll('main section')].filter(section => section.getClientRects().length)"
    ".map(section => section.id + ' ' + [...section.querySelectorAll('article')].filter(a => !a.hidden).length)"
)


@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [
        ("word", "5", ["fig05_sky 1"]),
        ("word", "GRASS", ["fig15_grass 2"]),
        ("verdicts", "FAIL", ["fig15_grass 1", "theory 1"]),
        ("networks", "ViT", ["fig15_grass 1"]),
        ("scale", "paper", ["fig15_grass 1"]),
        ("word", "nothing has this", []),
    ],
)
def test_filter_shows_what_is_asked_for(page, field, value, shown) -> None:
    browser, path = page
    browser.open(path)
    assert browser.evaluate(SHOWN) == ["fig05_sky 1", "fig15_grass 2", "theory 1"]
    browser.evaluate(
        f"{{const field = document.querySelector('.filter').elements[{field!r}]; field.value = {value!r};"
        "field.dispatchEvent(new Event('input', {bubbles: true}));}"
    )
    assert browser.evaluate(SHOWN) == shown
    count = sum(int(entry.split()[1]) for entry in shown)
    assert browser.evaluate("document.querySelector('.filter output').textContent") == f"{count} of 4 results"
    assert not browser.errors


def test_sections_fold_by_keyboard_and_open_by_address(page) -> None:
    browser, path = page
    opened = "[...document.querySelectorAll('main section > details')].map(details => details.open)"
    browser.open(path)
    assert browser.evaluate(opened) == [False, False, False]
    browser.evaluate("document.querySelector('main summary').focus()")
    browser.press("Enter")
    assert browser.evaluate(opened) == [True, False, False]
    browser.open(path, "#fig15_grass")
    assert browser.evaluate(opened) == [False, True, False]
    place = browser.evaluate("document.getElementById('fig15_grass').getBoundingClientRect().top")
    filter_ends = browser.evaluate("document.querySelector('.filter').getBoundingClientRect().bottom")
    assert place >= filter_ends - 1 or browser.evaluate("scrollY + innerHeight >= document.body.scrollHeight - 1")


def test_a_picture_opens_in_full_size_from_the_disk(page) -> None:
    browser, path = page
    browser.open(path, "#fig05_sky", width=390)
    browser.wait("document.querySelector('.frame img').naturalWidth > 0")
    assert browser.evaluate("document.querySelector('.frame img').clientWidth") < 390
    browser.click("#fig05_sky .frame")
    browser.wait("document.contentType === 'image/png'")
    assert browser.evaluate("document.images[0].naturalWidth") == 1800
