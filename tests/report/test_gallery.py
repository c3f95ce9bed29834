import json
import re
import shutil
import struct
import zlib
from dataclasses import asdict
from pathlib import Path

import pytest
from fabricated import run, verdict, write_result
from PIL import Image

from opposing_signals.errors import DamagedError, InputError
from opposing_signals.experiments import experiments
from opposing_signals.report import check_gallery, write_gallery
from opposing_signals.report.gallery import WIDTH
from opposing_signals.report.result import CHECK
from opposing_signals.report.sentences import paper
from opposing_signals.report.sweep import across

DRAWN = "2026-01-02T04:00:00+00:00"


@pytest.fixture
def results(tmp_path) -> Path:
    folder = tmp_path / "results"
    claims = [verdict("a", "PASS"), verdict("b", "FAIL", statement="a_b < *c*")]
    write_result(folder / "cpu" / "fig01_group_losses", claims, size=(960, 480))
    write_result(folder / "paper" / "fig01_group_losses", scale="paper", size=(200, 2000))
    return folder


def test_what_the_paper_shows_is_said_of_experiments_that_there_are() -> None:
    assert paper().keys() <= set(experiments())
    assert {name for name in experiments() if name.startswith("fig")} <= paper().keys()


def test_every_result_has_its_picture_claims_and_cost(results) -> None:
    page, undescribed = write_gallery(results)
    text = page.read_text(encoding="utf-8")
    assert undescribed == []
    assert paper()["fig01_group_losses"] in text
    for place in ("cpu/fig01_group_losses", "paper/fig01_group_losses"):
        assert f"](thumbnails/{place.replace('/', '-')}.webp)]({place}/figure.png)" in text
    assert "- ✓ PASS a: What a states" in text
    assert "- ✗ FAIL b: a\\_b \\< \\*c\\*: −0.971, 95% interval −0.983 to −0.951 (claimed: ≥ −0.8)\n" in text
    assert "**Here** (scale cpu, seed 1; ResNet-18 of width 16, 2,500 images):" in text
    assert "10 min 42 s of training on x86_64, 2 threads" in text
    links = (f"[fig01\\_group\\_losses ({scale})](#fig01_group_losses)" for scale in ("paper", "cpu"))
    assert f"- **Some claims hold** (2): {' · '.join(links)}\n" in text
    links = re.findall(r"\]\((?!#)([^)]+)\)", text)
    assert len(links) == 8
    assert all((results / link).is_file() for link in links)


def test_a_sweep_over_seeds_stands_below_the_claims(results) -> None:
    folder = results / "cpu" / "fig01_group_losses"
    for seed, value, outcome in ((1, -0.9, "PASS"), (2, -0.5, "FAIL")):
        write_result(folder / f"seed={seed}", [verdict("a_b", outcome, value=value)])
    claims = across({f"seed={seed}": folder / f"seed={seed}" for seed in (1, 2)})
    shutil.rmtree(folder / "seed=1")
    for path in (folder / "seed=2").glob("*.json"):
        path.unlink()
    assert (folder / "seed=2" / "figure.png").is_file()
    (folder / "sweep.json").write_text(json.dumps([asdict(claim) for claim in claims]))
    page, _ = write_gallery(results)
    text = page.read_text(encoding="utf-8")
    assert "over seed=1, seed=2 it passes" not in text, "no such claim stands in claims.json"
    (folder / "claims.json").write_text(json.dumps([verdict("a_b", "PASS")]))
    text = write_gallery(results)[0].read_text(encoding="utf-8")
    said = "; over seed=1, seed=2 it passes in 1 of 2, mean −0.70, standard deviation 0.28\n"
    assert text.count(said) == 1
    pictures = "](cpu/fig01_group_losses/sweep.png) · [seed=2](cpu/fig01_group_losses/seed=2/figure.png)\n"
    assert text.count(f"[The claims over seed=1, seed=2{pictures}") == 1
    (folder / "sweep.json").unlink()
    assert "seed=2/figure.png" not in write_gallery(results)[0].read_text(encoding="utf-8")
    described = json.loads((folder / "experiment.json").read_text())
    runs = {f"seed={seed}": {"folder": str(seed), "configuration": {"seed": seed}} for seed in (1, 2)}
    (folder / "experiment.json").write_text(json.dumps({**described, "runs": runs}))
    text = write_gallery(results)[0].read_text(encoding="utf-8")
    assert "\n\n[seed=2](cpu/fig01_group_losses/seed=2/figure.png)\n" in text, "a grid over seeds"
    assert "scale cpu, seeds 1, 2" in text
    (folder / "sweep.json").write_text('[{"id": "a"}]')
    with pytest.raises(DamagedError, match="cannot be read"):
        write_gallery(results)


def test_verdicts_are_counted_by_what_was_run_and_those_on_a_single_value_apart(results) -> None:
    single = {"interval": None}
    check = verdict("e", "PASS", source=CHECK, **single)
    claims = [verdict("c", "PASS", **single), verdict("d", "FAIL", **single), verdict("n", "NOT RUN"), check]
    toy = {"toy": {**run(), "configuration": {"model": None}}}
    write_result(results / "cpu" / "fig02", claims, runs={"other": run(seed=2)})
    write_result(results / "cpu" / "fig33", [check], runs={"third": run(seed=3)})
    write_result(results / "paper" / "fig04", [verdict("c", "PASS", **single)], scale="paper", runs=toy)
    text = write_gallery(results)[0].read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    columns = (
        "PASS, interval",
        "PASS, single value",
        "FAIL, interval",
        "FAIL, single value",
        "INCONCLUSIVE",
        "NOT RUN",
    )
    assert rows[0] == ["", *columns]
    assert rows[2:] == [
        ["Networks, scale cpu", "1", "1", "1", "1", "0", "1"],
        ["Networks, scale paper", "1", "0", "1", "0", "1", "1"],
        ["Theory and toy models", "0", "1", "0", "0", "0", "0"],
        ["Checks of the measurement", "0", "2", "0", "0", "0", "0"],
    ]
    assert text.count(": −0.971, single value (claimed") == 2, "neither the check nor what is computed"
    assert "- **Every claim holds, in theory and toy models** (1): [fig04](#fig04)\n" in text
    assert "- **Nothing but the measurement is claimed** (1): [fig33](#fig33)\n" in text


def test_an_earlier_verdict_that_its_interval_does_not_decide_is_judged_again(results) -> None:
    claims = [verdict(verdict_, verdict_, interval=[-0.98, -0.7]) for verdict_ in ("PASS", "FAIL")]
    write_result(results / "cpu" / "fig02", [*claims, verdict("INCONCLUSIVE", "INCONCLUSIVE")], runs={"b": run(seed=2)})
    text = write_gallery(results)[0].read_text(encoding="utf-8")
    assert text.count("? INCONCLUSIVE PASS: ") == text.count("? INCONCLUSIVE FAIL: ") == 1
    assert (
        text.count("−0.97, 95% interval −0.98 to −0.70 (claimed: ≥ −0.8); judged again: FAIL by an earlier rule") == 1
    )
    assert "- **No claim holds, none fails** (1): [fig02](#fig02)\n" in text


def test_thumbnails_are_small_and_of_the_upper_part(results) -> None:
    write_gallery(results)
    sizes = {path.stem: Image.open(path).size for path in (results / "thumbnails").iterdir()}
    assert sizes == {"cpu-fig01_group_losses": (WIDTH, WIDTH // 2), "paper-fig01_group_losses": (WIDTH, WIDTH)}


def test_a_sentence_stands_for_the_picture_it_was_written_for(results) -> None:
    place = "cpu/fig01_group_losses"
    (results / "sentences.yaml").write_text(json.dumps({place: {"drawn": DRAWN, "shows": "Groups alternate."}}))
    page, undescribed = write_gallery(results)
    assert "2,500 images): Groups alternate." in page.read_text()
    assert undescribed == []
    described = results / place / "experiment.json"
    described.write_text(described.read_text().replace(DRAWN, "2026-01-05T04:00:00+00:00"))
    page, undescribed = write_gallery(results)
    assert "Groups alternate." not in page.read_text()
    assert undescribed == [place]


def test_what_has_changed_is_out_of_date(results) -> None:
    write_gallery(results)
    check_gallery(results)
    picture = results / "cpu" / "fig01_group_losses" / "figure.png"
    drawn = picture.read_bytes()
    Image.new("RGB", (960, 480), "tomato").save(picture)
    with pytest.raises(InputError, match=r"results: cpu-fig01_group_losses.webp is out of date; .* gallery .*anew"):
        check_gallery(results)
    picture.write_bytes(drawn)
    write_result(results / "cpu" / "fig02", runs={"other": run(seed=2)})
    with pytest.raises(InputError, match=r"README.md, cpu-fig02.webp are out of date"):
        check_gallery(results)
    write_gallery(results)
    check_gallery(results)
    (results / "thumbnails" / "stale.webp").write_bytes(b"")
    with pytest.raises(InputError, match=r"stale.webp is out of date"):
        check_gallery(results)
    write_gallery(results)
    check_gallery(results)


def test_a_picture_that_cannot_be_shown_is_named(results) -> None:
    picture = results / "cpu" / "fig01_group_losses" / "figure.png"
    sound = picture.read_bytes()
    head = b"IHDR" + struct.pack(">II", 60_000, 60_000) + sound[24:29]
    for damaged in (sound[:12] + head + struct.pack(">I", zlib.crc32(head)) + sound[33:], sound[:40] + sound[-30:]):
        picture.write_bytes(damaged)
        with pytest.raises(InputError, match=r"figure.png cannot be shown: .*; draw it again"):
            write_gallery(results)


def test_nothing_to_show_and_damage_are_refused(results, tmp_path) -> None:
    with pytest.raises(InputError, match=r"no results in .*empty"):
        write_gallery(tmp_path / "empty")
    (results / "cpu" / "fig01_group_losses" / "figure.png").unlink()
    with pytest.raises(InputError, match=r"cpu/fig01_group_losses: figure.png is missing"):
        write_gallery(results)
    assert not (results / "README.md").exists()


def test_single_values_of_several_seeds_are_no_interval(results) -> None:
    seeds = [{"seed": seed, "value": 0.5, "interval": None, "verdict": "PASS"} for seed in (1, 2)]
    path = results / "cpu" / "fig01_group_losses" / "claims.json"
    path.write_text(json.dumps([{**verdict("a_b", "PASS", value=0.5), "interval": None, "by_seed": seeds}]))
    text = write_gallery(results)[0].read_text(encoding="utf-8")
    assert "0.5, median of 2 single values (claimed" in text
    assert "with its whole interval" not in text
    seeds[0]["interval"] = [0.4, 0.6]
    path.write_text(json.dumps([{**verdict("a_b", "PASS", value=0.5), "interval": None, "by_seed": seeds}]))
    assert "single values" not in write_gallery(results)[0].read_text(encoding="utf-8")
