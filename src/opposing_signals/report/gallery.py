"""The gallery of committed results, ``results/README.md``, which can be read without installing anything."""

from __future__ import annotations

import re
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image

from opposing_signals.configuration import job_folder
from opposing_signals.errors import DamagedError, InputError, first_line
from opposing_signals.files import replacing, write_text
from opposing_signals.report.page import PACKED, PACKS, SYMBOLS, duration, find_results, measured, spread, threshold
from opposing_signals.report.result import CHECK, VERDICTS, Picture, Result
from opposing_signals.report.sentences import paper, shown
from opposing_signals.report.sweep import PICTURE as SWEEP_PICTURE
from opposing_signals.report.sweep import Across, read_sweep

PAGE = "README.md"
THUMBNAILS = "thumbnails"
WIDTH = 720
"""Width of a thumbnail in pixels, about that of a column of text; a tall picture is cut to its upper square."""
SINGLE = "single value"
"""Label of a measured value without an interval."""
THEORY, CHECKS = "Theory and toy models", "Checks of the measurement"
OUTCOMES = {
    "all by intervals": "Every claim holds, with its whole interval",
    "all": "Every claim holds, one or more as a single value",
    "all of theory": "Every claim holds, in theory and toy models",
    "some": "Some claims hold",
    "undecided": "No claim holds, none fails",
    "none": "No claim holds, one or more fail",
    "": "Nothing but the measurement is claimed",
}
INTRODUCTION = """\
What the paper shows and what real runs of this package show, with the verdict on every claim. A claim is fixed \
before the run: a statement, a statistic and a threshold (`docs/claims.md`). It is PASS where the \
whole 95% interval of the measured value meets the threshold, FAIL where none of it does, else INCONCLUSIVE. An \
interval is over the steps or the spikes of one seed, not over seeds. Many statistics have none: their *single value* \
decides, and where it is near the threshold another seed, or another number of threads, may decide otherwise.

- **Scale paper** has the paper's settings. **Scale cpu** is what a laptop trains: narrow networks (ResNet-18 and \
VGG-11 have width 64 in the paper), some thousand of the 50,000 images, some hundred steps.
- **λ**, the sharpness: the largest eigenvalue of the Hessian of the train loss. Gradient descent of step size η \
cannot settle where λ is above **2/η**.
- **Break-even**: the first measured step with λ ≥ 2/η.
- **Opposing pair**: two groups of training examples; when the loss of one rises, that of the other falls. The \
**dominant pairs** are the four of largest amplitude that a search finds (`docs/discovery.md`).
- **Feature norm**: the norm of the last layer's input, for one image; that of the data is its mean over the training \
images (`docs/probes.md`).
- **Loss spike**: one of the steps in which the train loss rises most."""
QUALITY = 70
DESCRIPTION = 0x010E
"""The Exif field that holds the SHA-256 of the thumbnail's source picture."""


def write_gallery(folder: Path) -> tuple[Path, list[str]]:
    """Write the gallery of the results in ``folder``, with a thumbnail of each.

    Returns:
        The page, and the results whose sentence was written for an earlier picture and is therefore left out.

    Raises:
        InputError: There are no results in ``folder``, or one of them cannot be read.
        NotWrittenError: The page or a thumbnail cannot be written; the earlier one is kept.
    """
    results = _results(folder)
    thumbnails = _thumbnails(folder, results)
    for path, picture in thumbnails.items():
        if _made_of(path) != picture.sha256:
            _shrink(picture, path)
    for stale in sorted({*(folder / THUMBNAILS).glob("*.webp")} - thumbnails.keys()):
        stale.unlink()
    write_text(folder / PAGE, render(results, folder))
    described = shown(folder)
    return folder / PAGE, [
        place
        for result in results
        if not result.shown and (folder / (place := result.place_in(folder))).resolve() in described
    ]


def check_gallery(folder: Path) -> None:
    """Refuse a gallery that does not match the results in ``folder``.

    Raises:
        InputError: The page or a thumbnail is of other results.
    """
    results = _results(folder)
    path = folder / PAGE
    outdated = [] if path.is_file() and path.read_text(encoding="utf-8") == render(results, folder) else [PAGE]
    thumbnails = _thumbnails(folder, results)
    outdated += [path.name for path, picture in thumbnails.items() if _made_of(path) != picture.sha256]
    outdated += sorted(path.name for path in {*(folder / THUMBNAILS).glob("*.webp")} - thumbnails.keys())
    if outdated:
        raise InputError(
            f"{folder}: {', '.join(outdated)} {'is' if len(outdated) == 1 else 'are'} out of date; "
            f"opposing-signals gallery {folder} makes the gallery anew"
        )


def render(results: list[Result], folder: Path) -> str:
    """The page in Markdown; links are relative to ``folder``, in which the results lie."""
    experiments = [(name, list(group)) for name, group in groupby(results, key=lambda result: result.name)]
    runs = {run.folder: run.training_seconds or 0 for result in results for run in result.runs}
    lines = [
        "# The paper, figure by figure",
        "",
        "<!-- Written by `opposing-signals gallery`: change the results or the sentences, not this page. -->",
        "",
        INTRODUCTION,
        "",
        f"{len(results)} results of {len(experiments)} experiments, from {len(runs)} runs, "
        f"{duration(sum(runs.values()))} of training in all. Their verdicts:",
        "",
        *_counts(results),
        "",
        "In theory and toy models a value is computed, not estimated. A check of the measurement, such as shares that "
        "sum to 1, is no claim of the paper. By figure (a click on a picture opens it in full size):",
        "",
    ]
    for outcome, meaning in OUTCOMES.items():
        found = [
            (result, len(group) > 1) for _, group in experiments for result in group if _outcome(result) == outcome
        ]
        if found:
            lines.append(f"- **{meaning}** ({len(found)}): {' · '.join(_link(*each) for each in found)}")
    for name, group in experiments:
        lines += ["", f'<a id="{name}"></a>', "", f"## {group[0].title}", ""]
        if name in paper():
            lines += [f"**Paper:** {_text(paper()[name])}", ""]
        for result in group:
            lines += [*_shown(result, folder), ""]
        lines.pop()
    return "\n".join(lines) + "\n"


def _counts(results: list[Result]) -> list[str]:
    """A table of the verdicts by what was run, with verdicts on a single value counted separately."""
    columns = [f"{verdict}, {how}" for verdict in VERDICTS[:2] for how in ("interval", SINGLE)] + [*VERDICTS[2:]]
    counts: dict[str, Counter[str]] = {}
    for result in results:
        for claim in result.verdicts:
            verdict = claim["verdict"]
            how = f"{verdict}, {SINGLE if _is_single(claim) else 'interval'}"
            row = CHECKS if claim["source"] == CHECK else _kind(result)
            counts.setdefault(row, Counter())[how if verdict in VERDICTS[:2] else verdict] += 1
    columns = [column for column in columns if any(row[column] for row in counts.values())]
    ordered = sorted(counts.items(), key=lambda item: (item[0] == CHECKS, item[0]))
    rows = [[name, *(str(row[column]) for column in columns)] for name, row in ordered]
    return [f"| {' | '.join(row)} |" for row in (["", *columns], ["---", *["--:"] * len(columns)], *rows)]


def _kind(result: Result) -> str:
    return f"Networks, scale {_text(result.scale)}" if result.networks else THEORY


def _is_single(claim: dict[str, Any]) -> bool:
    """Whether a single value decides, or one of each seed: there is no interval."""
    return claim["interval"] is None and not any(one.get("interval") for one in claim.get("by_seed") or ())


def _outcome(result: Result) -> str:
    """The entry of `OUTCOMES` under which the result is listed."""
    if result.outcome != "all":
        return result.outcome
    if not result.networks:
        return "all of theory"
    return (
        "all" if any(_is_single(claim) for claim in result.verdicts if claim["source"] != CHECK) else "all by intervals"
    )


def _link(result: Result, with_scale: bool) -> str:
    """A link to the result by the number of its figure, or by the experiment's name."""
    figure = re.match(r"Figure (\w+):", result.title)
    return (
        f"[{figure[1] if figure else _text(result.name)}{f' ({result.scale})' if with_scale else ''}](#{result.name})"
    )


def _shown(result: Result, folder: Path) -> list[str]:
    """One result: its sentence, picture, claims and origin."""
    place = result.place_in(folder)
    where = f"scale {result.scale}, {result.seeds}"
    trained = "; ".join(dict.fromkeys(run.trained for run in result.runs if run.trained))
    said = f" {_text(result.shown.sentence)}" if result.shown else ""
    sweep = {claim.id: claim for claim in read_sweep(folder / place)}
    others = _other_pictures(result, folder, place, sweep)
    lines = [
        f"**Here** ({where}{f'; {_text(trained)}' if trained else ''}):{said}",
        "",
        f"[![{_text(result.title)}, {where}]({THUMBNAILS}/{_flat(place)})]({place}/figure.png)",
        "",
        *(f"- {_claim(claim, result, sweep.get(claim['id']))}" for claim in result.verdicts),
        *(["", " · ".join(others)] if others else []),
    ]
    cost = ""
    if result.training_seconds is not None:
        of = f"{len(result.runs)} runs, " if len(result.runs) > 1 else ""
        work = "training" if result.networks else "computing"
        cost = f"{of}{duration(result.training_seconds)} of {work}{_machines(result)} · "
    files = [f"[claims]({place}/claims.json)", f"[settings and origin]({place}/experiment.json)"]
    packs = [f"{place.rpartition('/')[0]}/{PACKS}/{PACKED.replace('*', run.folder)}" for run in result.runs]
    files += [f"[record]({pack})" for pack in dict.fromkeys(packs) if (folder / pack).is_file()]
    return [*lines, "", f"{cost}`{result.command}` · {' · '.join(files)}"]


def _other_pictures(result: Result, folder: Path, place: str, sweep: dict[str, Across]) -> list[str]:
    """Links to the claims over a sweep's jobs, and to the figures of the jobs and seeds that have their own."""
    links = [f"[The claims over {_text(_jobs(sweep))}]({place}/{SWEEP_PICTURE})"] if sweep else []
    jobs = [job for claim in sweep.values() for job in claim.values]
    seeds = [f"seed={run.settings['seed']}" for run in result.runs if "seed" in run.settings]
    for job in dict.fromkeys([*jobs, *seeds]):
        picture = f"{place}/{job_folder(job)}/figure.png"
        if (folder / picture).is_file():
            links.append(f"[{_text(job)}]({picture})")
    return links


def _claim(claim: dict[str, Any], result: Result, sweep: Across | None) -> str:
    """A claim in a line: its verdict, name and statement, the measured value, and its outcomes over a sweep's jobs."""
    said = f"{SYMBOLS[claim['verdict']]} {claim['verdict']} {_text(claim['id'])}: {_text(claim['statement'])}"
    if value := measured(claim):
        seeds = len(claim.get("by_seed") or ())
        single = f", {f'median of {seeds} {SINGLE}s' if seeds else SINGLE}"
        single = single if _is_single(claim) and result.networks and claim["source"] != CHECK else ""
        said += f": {value}{single} (claimed: {_text(threshold(claim['threshold']))})"
    if claim["id"] in result.reasons:
        said += f"; {_text(result.reasons[claim['id']])}"
    if sweep:
        said += f"; over {_text(_jobs({sweep.id: sweep}))} it passes in {sweep.passed} of {sweep.jobs}"
        if sweep.mean is not None and sweep.deviation is not None:
            said += f", {spread(sweep.mean, sweep.deviation)}"
    return said


def _machines(result: Result) -> str:
    """The machine on which the runs were trained, if it is the same for all."""
    machines = {
        (run.origin("machine", "device"), run.origin("machine", "threads")) for run in result.runs if run.provenance
    }
    if len(machines) != 1:
        return ""
    ((device, threads),) = machines
    return f" on {device}" + (f", {threads} thread{'s' if threads > 1 else ''}" if isinstance(threads, int) else "")


def _jobs(claims: dict[str, Across]) -> str:
    return ", ".join(dict.fromkeys(job for claim in claims.values() for job in claim.values))


def _text(text: Any) -> str:
    """``text`` escaped for Markdown."""
    return re.sub(r"([\\`*_\[\]<>|~])", r"\\\1", str(text))


def _results(folder: Path) -> list[Result]:
    """The results in ``folder``, sorted by path.

    Raises:
        InputError: There are none, or one is malformed.
    """
    results = find_results([folder])
    if not results:
        raise InputError(f"no results in {folder}: expected folders with experiment.json, claims.json and figure.png")
    if damaged := [f"{result.folder}: {problem}" for result in results for problem in result.problems]:
        raise InputError("; ".join(damaged))
    return results


def _flat(place: str) -> str:
    return place.replace("/", "-") + ".webp"


def _thumbnails(folder: Path, results: list[Result]) -> dict[Path, Picture]:
    """Path of each thumbnail ↦ its picture."""
    return {
        folder / THUMBNAILS / _flat(result.place_in(folder)): result.picture for result in results if result.picture
    }


def _made_of(path: Path) -> str:
    """The SHA-256 of the picture behind the thumbnail at ``path``; empty if its width is not the current one."""
    try:
        with Image.open(path) as thumbnail:
            return str(thumbnail.getexif().get(DESCRIPTION, "")) if thumbnail.width == WIDTH else ""
    except OSError:
        return ""


def _shrink(picture: Picture, path: Path) -> None:
    try:
        with Image.open(picture.path) as full:
            upper = full.convert("RGB").crop((0, 0, full.width, min(full.height, full.width)))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # each damage raises another
        raise DamagedError(f"{picture.path} cannot be shown: {first_line(error)}; draw it again") from None
    small = upper.resize((WIDTH, round(upper.height * WIDTH / upper.width)), Image.Resampling.LANCZOS)
    exif = Image.Exif()
    exif[DESCRIPTION] = picture.sha256
    with replacing(path) as unfinished:
        small.save(unfinished, "webp", quality=QUALITY, exif=exif)
