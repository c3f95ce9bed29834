import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fabricated import run, verdict, write_result
from PIL import Image

from opposing_signals.errors import InputError
from opposing_signals.report import build
from opposing_signals.report.page import (
    duration,
    find_records,
    find_results,
    interval,
    measured,
    number,
    spread,
    threshold,
)
from opposing_signals.report.result import VERDICTS
from opposing_signals.report.sentences import paper
from opposing_signals.studies import claim

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """The elements of a page, and the text of each of its sections."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.sections: dict[str, str] = {}
        self.text = ""
        self._open: list[str] = []
        self._section: str | None = None
        self.source = page.read_text(encoding="utf-8")
        self.feed(self.source)
        assert not self._open, "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "section":
            self._section = dict(attrs)["id"] or ""
            assert self._section not in self.sections
            self.sections[self._section] = ""

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        if tag == "section":
            self._section = None

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in ("script", "style"):
            return
        self.text += data
        if self._section is not None:
            self.sections[self._section] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def page_of(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *folders: Page(build([Path(folder) for folder in folders or ("outputs", "results")]))


def test_verdicts_are_those_that_claims_give() -> None:
    assert VERDICTS == (claim.PASS, claim.FAIL, claim.INCONCLUSIVE, claim.NOT_RUN)


def test_default_page(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_result(tmp_path / "outputs" / "fig01")
    assert build([Path("outputs")]) == Path("outputs/report/index.html")
    assert sorted(path.name for path in (tmp_path / "outputs" / "report").iterdir()) == ["index.html", "pictures"]


def test_every_claim_is_there_with_its_verdict(tmp_path, page_of) -> None:
    write_result(tmp_path / "outputs" / "fig01")
    section = page_of().sections["fig01"]
    rows = re.split(r"(?=[✓✗?–] +(?:PASS|FAIL|INCONCLUSIVE|NOT RUN))", section)[1:]
    assert len(rows) == 4
    for row, claimed in zip(rows, json.loads((tmp_path / "outputs/fig01/claims.json").read_text()), strict=True):
        assert re.search(rf"\b{claimed['verdict']}\b", row)
        for field in ("id", "statement", "source", "statistic"):
            assert claimed[field] in row
        assert "≥ −0.8" in row
        assert ("−0.9713" in row) == ("−0.9834 to −0.9513" in row) == (claimed["value"] is not None)


def test_headline_counts_verdicts_by_scale(tmp_path, page_of) -> None:
    write_result(tmp_path / "outputs" / "fig01", [verdict("a", "PASS"), verdict("b", "FAIL")])
    write_result(tmp_path / "outputs" / "fig02", [verdict("c", "PASS")], scale="paper")
    write_result(tmp_path / "outputs" / "fig03", [verdict("d", "FAIL")], runs={"other": run(seed=2)})
    write_result(tmp_path / "outputs" / "fig04", [])
    headline = re.sub(r"\s+", " ", page_of().text.partition("figure or word")[0])
    assert "1Reproduced: every claim holds. paper 1, cpu 0" in headline
    assert "1In part: some claims hold. paper 0, cpu 1" in headline
    assert "1Not reproduced: no claim holds. paper 0, cpu 1" in headline
    assert "1Pictures alone" in headline
    assert "2 PASS, 2 FAIL: 4 verdicts in 4 results of 4 experiments" in headline


def test_a_run_counts_once_however_many_figures_it_has(tmp_path, page_of) -> None:
    write_result(tmp_path / "outputs" / "fig01")
    write_result(tmp_path / "outputs" / "fig02")
    write_result(tmp_path / "outputs" / "fig03", runs={"other": {**run(), "folder": "another"}})
    assert "from 2 runs of 21 min 24 s in all" in re.sub(r"\s+", " ", page_of().text)


def test_copies_of_a_result_are_one_and_the_last_picture_stands_for_them(tmp_path) -> None:
    write_result(tmp_path / "outputs" / "fig01", drawn="2026-01-03T04:00:00+00:00")
    write_result(tmp_path / "results" / "fig01", drawn="2026-01-02T04:00:00+00:00")
    write_result(tmp_path / "results" / "again" / "fig01", runs={"other": {**run(), "folder": "another"}})
    found = find_results([tmp_path / "outputs", tmp_path / "results"])
    assert [result.folder for result in found] == ["outputs/fig01", "results/again/fig01"]
    given_twice = [tmp_path / "outputs", tmp_path / "outputs" / "fig01", tmp_path / "outputs"]
    assert len(find_results(given_twice)) == 1


def test_copies_of_a_run_are_one(tmp_path) -> None:
    for place, seed in (("a/run", 1), ("b/run", 1), ("c/run", 2)):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "configuration.json").write_text(json.dumps({"seed": seed}))
        (tmp_path / place / "provenance.json").write_text("{}")
    assert find_records([tmp_path]) == [tmp_path / "a/run", tmp_path / "c/run"]


def test_why_a_result_fails_stands_with_its_title(tmp_path, page_of) -> None:
    write_result(tmp_path / "results" / "fig01_group_losses", [verdict("a", "PASS"), verdict("b", "FAIL")])
    write_result(tmp_path / "results" / "fig02", [verdict("c", "FAIL")])
    entry = {"drawn": "2026-01-02T04:00:00+00:00", "shows": "Groups alternate & more."}
    sentences = tmp_path / "results" / "sentences.yaml"
    sentences.write_text(json.dumps({"fig01_group_losses": entry, "fig02": {**entry, "drawn": "before"}}))
    sections = page_of().sections
    assert sections["fig01_group_losses"].count("Groups alternate & more.") == 2
    assert paper()["fig01_group_losses"] in sections["fig01_group_losses"]
    assert "Groups alternate" not in sections["fig02"], "written for another picture"
    assert re.search(r"What c states about .*: FAIL, −0.9713 \(≥ −0.8\)", sections["fig02"])
    sentences.write_text("fig01: text")
    with pytest.raises(InputError, match=r"sentences.yaml: expected the folder of each result with the fields shows"):
        page_of()


def test_picture_lies_beside_the_page(tmp_path, page_of) -> None:
    folder = write_result(tmp_path / "outputs" / "fig01", size=(600, 300))
    page = page_of()
    (image,) = page.all("img")
    assert {"class": "frame", "href": image["src"]} in page.all("a"), "it opens in full size"
    picture = tmp_path / "outputs" / "report" / (image["src"] or "")
    assert picture.read_bytes() == (folder / "figure.png").read_bytes()
    assert (image["width"], image["height"], image["loading"]) == ("600", "300", "lazy")
    assert "Title of fig01" in (image["alt"] or "")
    Image.new("RGB", (60, 30), "tomato").save(folder / "figure.png")
    (picture.parent / "own.png").write_bytes(b"somebody's own")
    (again,) = page_of().all("img")
    assert {path.name for path in picture.parent.iterdir()} == {Path(again["src"] or "").name, "own.png"}
    assert not picture.exists(), "an earlier page's"


def test_page_stands_alone(tmp_path, page_of) -> None:
    write_result(tmp_path / "outputs" / "fig01")
    page = page_of()
    references = ("src", "href", "srcset", "poster", "action")
    targets = [value or "" for _, a in page.elements for name, value in a.items() if name in references]
    assert all(re.fullmatch(r"#.*|pictures/[0-9a-f]{16}\.png", target) for target in targets)
    assert not re.search(r"https?://|@import|url\(", page.source)
    (policy,) = [meta["content"] or "" for meta in page.all("meta") if "http-equiv" in meta]
    assert "default-src 'none'" in policy
    anchors = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    assert {target.removeprefix("#") for target in targets if target.startswith("#")} <= anchors


def test_structure(tmp_path, page_of) -> None:
    write_result(tmp_path / "outputs" / "fig01")
    page = page_of()
    assert page.all("html") == [{"lang": "en"}]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    assert [len(page.all(tag)) for tag in ("h1", "main", "section", "h2", "figure", "figcaption")] == [1] * 6
    assert len(page.all("summary")) == 3, "the section's, its settings' and its provenance's"
    (section,) = page.all("section")
    assert section["id"] == "fig01"
    assert "#fig01" in [link["href"] for link in page.all("a")]


def test_nothing_tells_where_the_folders_lie(tmp_path, page_of) -> None:
    write_result(tmp_path / "outputs" / "fig01")
    write_result(tmp_path / "elsewhere" / "fig02")
    (tmp_path / "outputs" / "fig01" / "figure.png").unlink()
    page = page_of(tmp_path / "outputs", tmp_path / "elsewhere")
    assert str(tmp_path) not in page.source
    assert "outputs/fig01" in page.sections["fig01"]


def test_text_is_data(tmp_path, page_of) -> None:
    attack = "<script>alert('x')</script> & \"quotes\""
    claims = [verdict(attack, "PASS", statement=attack, source=attack, statistic=attack, threshold=attack)]
    fields = {"name": attack, "title": attack, "command": attack, "scale": attack, "drawn": attack}
    runs = {attack: run(loss=attack), "other": run(loss=1)}
    write_result(tmp_path / "outputs" / "fig01", claims, **fields, runs=runs)
    page = page_of()
    assert len(page.all("script")) == 1
    assert "alert('x')" not in page.source
    assert page.sections[attack].count(attack) >= 9
    assert attack in (page.all("img")[0]["alt"] or "")


def test_scales_of_an_experiment_share_a_section(tmp_path, page_of) -> None:
    write_result(tmp_path / "outputs" / "fig01", scale="smoke")
    write_result(tmp_path / "results" / "cpu" / "fig01", scale="cpu", seed=10)
    write_result(tmp_path / "results" / "cpu" / "again" / "fig01", scale="cpu", seed=9)
    write_result(tmp_path / "results" / "paper" / "fig01", scale="paper")
    page = page_of()
    assert list(page.sections) == ["fig01"]
    titles = ["Scale paper, seed 1", "Scale cpu, seed 9", "Scale cpu, seed 10", "Scale smoke, seed 1"]
    sources = ["results/paper/fig01", "results/cpu/again/fig01", "results/cpu/fig01", "outputs/fig01"]
    assert re.findall(r"Scale \w+, seed \d+", page.sections["fig01"]) == titles
    assert re.findall(r"from ([\w/]+), drawn 2 January 2026, 04:00 UTC", page.sections["fig01"]) == sources
    assert len(page.all("img")) == 4


def test_sections_follow_the_figures(tmp_path, page_of) -> None:
    for name in ("theorem_31", "distribution", "fig10_grass", "fig02_curvature", "fig9"):
        write_result(tmp_path / "outputs" / name)
    assert list(page_of().sections) == ["fig02_curvature", "fig9", "fig10_grass", "distribution", "theorem_31"]


def test_settings_and_origin(tmp_path, page_of) -> None:
    write_result(tmp_path / "outputs" / "fig01")
    section = re.sub(r"\s+", " ", page_of().sections["fig01"])
    for text in (
        "opposing-signals experiment=fig01 scale=cpu",
        "SGDlr = 0.01",
        "resnet18width = 16",
        "chunk = 250precision = float32",
        "batch null",
        "steps 200",
        "2,500 training examples, sha256 0123456789ab…",
        "10 min 42 s",
        "x86_64, 2 threads, Linux",
        "0a1b2c3d4e5f",
        "python 3.11.7, torch 2.13.0",
    ):
        assert text in section


def test_runs_are_told_apart_by_the_settings_in_which_they_differ(tmp_path) -> None:
    runs = {f"lr{lr}": run(optimizer={"_target_": "torch.optim.SGD", "lr": lr}) for lr in (0.1, 1.0)}
    runs["sam"] = run(optimizer={"_target_": "opposing_signals.optim.SAM", "lr": 1.0, "rho": 0.05})
    write_result(tmp_path / "fig39", runs=runs)
    (result,) = find_results([tmp_path])
    assert result.differing_settings == ["optimizer", "optimizer.lr", "optimizer.rho"]
    assert [run.settings.get("optimizer.lr") for run in result.runs] == ["0.1", "1.0", "1.0"]
    assert result.shared_settings["model"] == [("", "resnet18"), ("width", "16")]
    assert "optimizer" not in result.shared_settings
    assert result.training_seconds == pytest.approx(3 * 642)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("experiment.json", "{broken", "experiment.json is not valid JSON"),
        ("experiment.json", "[]", "experiment.json holds no object"),
        ("experiment.json", "{}", "experiment.json does not say which experiment"),
        ("experiment.json", '{"name": "fig01", "runs": {"a": 1, "b": {"provenance": [], "configuration": 3}}}', ""),
        ("experiment.json", '{"name": 5, "runs": {"a": {"provenance": {"training_seconds": NaN, "data": 1}}}}', ""),
        ("experiment.json", None, "experiment.json is missing"),
        ("claims.json", "\x00\xff", "claims.json is not valid JSON"),
        ("claims.json", "{}", "claims.json holds no list"),
        ("claims.json", '[3, {"id": "a"}]', "claim 2 has no statement, source"),
        ("claims.json", json.dumps([verdict("a", "MAYBE")]), "the verdict on a is none of PASS, FAIL"),
        ("claims.json", json.dumps([verdict("a", "PASS", value="1", interval=[None])]), ""),
        ("claims.json", None, "claims.json is missing"),
        ("figure.png", "no picture", "figure.png is not a whole PNG file"),
        ("figure.png", "\x89PNG\r\n\x1a\nIEND\xaeB`\x82", "figure.png is not a whole PNG file"),
        ("figure.png", None, "figure.png is missing"),
    ],
)
def test_malformed_result_keeps_its_place(file, content, message, tmp_path, page_of) -> None:
    write_result(tmp_path / "outputs" / "fig02")
    folder = write_result(tmp_path / "outputs" / "fig01")
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content, encoding="latin-1")
    page = page_of()
    sound = page.sections.pop("fig02")
    (damaged,) = page.sections.values()
    assert message in damaged
    assert ("This result is incomplete" in damaged) == ("Incomplete results" in page.text) == bool(message)
    assert "incomplete" not in sound
    assert "What fig023 states" in sound


def test_truncated_picture_is_not_shown(tmp_path, page_of) -> None:
    figure = write_result(tmp_path / "outputs" / "fig01") / "figure.png"
    figure.write_bytes(figure.read_bytes()[:-20])
    page = page_of()
    assert "figure.png is not a whole PNG file" in page.sections["fig01"]
    assert not page.all("img")


def test_nothing_found(tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no results in .*empty, .*missing: expected .*experiment=NAME") as error:
        build([tmp_path / "empty", tmp_path / "missing"], tmp_path / "index.html")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "index.html").exists()


def test_depth(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("r", "r/1", "r/1/2", "r/1/2/3", "r/1/2/3/4"):
        write_result(tmp_path / folder / "x", name=folder)
    assert [result.name for result in find_results([Path("r")])] == ["r", "r/1", "r/1/2"]
    assert [result.folder for result in find_results([Path("r/x")])] == ["r/x"], "a given folder may be a result itself"
    monkeypatch.chdir(tmp_path / "r" / "x")
    assert [result.folder for result in find_results([Path()])] == ["x"]


def test_equal_results_give_an_equal_page(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("fig02", "fig01", "fig03"):
        write_result(tmp_path / "outputs" / name)
    write_result(tmp_path / "results" / "fig01", size=(20, 10))
    one = build([Path("outputs"), Path("results")], tmp_path / "one.html").read_bytes()
    assert build([Path("results"), Path("outputs")], tmp_path / "two.html").read_bytes() == one


def test_report_needs_no_torch() -> None:
    code = "import sys, opposing_signals.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_numbers_in_print() -> None:
    assert [number(x) for x in (-0.97131, 2, 1e-7, None, True, "3")] == ["−0.9713", "2", "1e−07", "–", "–", "–"]
    assert [interval(x) for x in ([-1.0, 2.5], None, [1])] == ["−1 to 2.5", "–", "–"]
    assert [threshold(x) for x in (">= -0.8", "in [0.8, 2.0]")] == ["≥ −0.8", "in [0.8, 2.0]"]
    seconds = {0.71: "0.71 s", 402: "6 min 42 s", 3599.9: "1 h 0 min", 14_000: "3 h 53 min", 2e5: "2 d 8 h"}
    assert [duration(x) for x in seconds] == list(seconds.values())


@pytest.mark.parametrize(
    ("value", "interval", "threshold", "text"),
    [
        (-0.7576, [-0.9835, -0.55], "< -0.8", "−0.76, 95% interval −0.98 to −0.55"),
        (6.611, [4.992, 8.992], "> 5", "6.61, 95% interval 4.99 to 8.99"),
        (26.26, [18.89, 34.04], "> 3", "26, 95% interval 19 to 34"),
        (0.5, [0.5, 0.5], ">= 0.5", "0.5, 95% interval 0.5 to 0.5"),
        (1.0977, None, "> 1.1", "1.098"),
        (8632.0, None, "> 1", "8630"),
        (1.29049e-07, None, "< 1e-4", "1.29e−07"),
        (1.0, None, "in [0.99, 1.01]", "1"),
        (None, None, "> 1", ""),
    ],
)
def test_a_measured_value_has_the_digits_that_tell_something(value, interval, threshold, text) -> None:
    assert measured({"value": value, "interval": interval, "threshold": threshold}) == text


def test_a_spread_has_two_digits() -> None:
    assert spread(14.5425, 3.94801) == "mean 14.5, standard deviation 3.9"
    assert spread(-0.7, 0.28284) == "mean −0.70, standard deviation 0.28"
    assert spread(2.0, 0.0) == "mean 2.0, standard deviation 0.0"


def luminance(colour: str) -> float:
    channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """The contrast ratio by WCAG 2.2."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_contrast(mode, tmp_path, page_of) -> None:
    write_result(tmp_path / "outputs" / "fig01")
    palettes = re.findall(r":root \{\s*(--ground.*?)\}", page_of().source, flags=re.DOTALL)[:2]
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", palettes[mode]))
    for ground in ("ground", "card", "faint"):
        for text in ("ink", "muted", "link", "inconclusive", "not-run", "fail"):
            assert contrast(colours[text], colours[ground]) >= 4.5, f"{text} on {ground}"
    for fill in ("pass", "fail"):
        assert contrast(colours["on-fill"], colours[fill]) >= 4.5


def test_why_a_claim_has_no_value(tmp_path, page_of) -> None:
    write_result(tmp_path / "fig01", [verdict("fig01a", "INCONCLUSIVE", reason="λ did not reach 2/η & <more>")])
    assert "No value: λ did not reach 2/η & <more>" in page_of(tmp_path).text
