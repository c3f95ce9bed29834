"""The gallery of committed results: what stands in ``results/README.md``, to be read without installing anything."""

from __future__ import annotations

import re
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image

from opposing_signals.errors import DamagedError, InputError, first_line
from opposing_signals.files import replacing, write_text
from opposing_signals.report.page import PACKED, PACKS, SYMBOLS, duration, find_results, number, threshold
from opposing_signals.report.result import VERDICTS, Picture, Result
from opposing_signals.report.sentences import paper, shown
from opposing_signals.report.sweep import PICTURE as SWEEP_PICTURE
from opposing_signals.report.sweep import Across, read_sweep

PAGE = "README.md"
THUMBNAILS = "thumbnails"
WIDTH = 720
"""Of a thumbnail in pixels, about that of a column of text; a tall picture is cut to its upper square."""
OUTCOMES = {"all": "Every claim holds", "some": "Some claims hold", "none": "No claim holds", "": "Nothing is claimed"}
QUALITY = 70
DESCRIPTION = 0x010E
"""The Exif field that holds the SHA-256 of the picture that a thumbnail was made of."""


def write_gallery(folder: Path) -> tuple[Path, list[str]]:
    """Write the gallery of the results in ``folder``, with a thumbnail of each.

    Returns:
        The page, and the results whose sentence was written for an earlier picture, so that it is left out.

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
    """Refuse a gallery that is not the one of the results in ``folder``.

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
    """The page in Markdown; addresses are relative to ``folder``, in which the results lie."""
    experiments = [(name, list(group)) for name, group in groupby(results, key=lambda result: result.name)]
    counts = Counter(verdict["verdict"] for result in results for verdict in result.verdicts)
    counted = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])
    runs = {run.folder: run.training_seconds or 0 for result in results for run in result.runs}
    lines = [
        "# The paper, figure by figure",
        "",
        "<!-- Written by `opposing-signals gallery`: change the results or the sentences, not this page. -->",
        "",
        "What the paper shows and what real runs of this package show, with the verdict on every claim. A claim is "
        "fixed before the run, and its measured value alone decides; one that does not hold is reported as FAIL.",
        "",
        f"{len(results)} results of {len(experiments)} experiments, with {counted}, from {len(runs)} runs, "
        f"{duration(sum(runs.values()))} of training in all. A click on a picture opens it in full size. By figure:",
        "",
    ]
    for outcome, meaning in OUTCOMES.items():
        found = [(result, len(group) > 1) for _, group in experiments for result in group if result.outcome == outcome]
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


def _link(result: Result, with_scale: bool) -> str:
    """A link to the result by the number of its figure, or by the experiment's name."""
    figure = re.match(r"Figure (\w+):", result.title)
    return (
        f"[{figure[1] if figure else _text(result.name)}{f' ({result.scale})' if with_scale else ''}](#{result.name})"
    )


def _shown(result: Result, folder: Path) -> list[str]:
    """One result: its sentence, picture, claims and origin."""
    place = result.place_in(folder)
    where = f"scale {result.scale}, seed {result.seed}"
    said = f" {_text(result.shown.sentence)}" if result.shown else ""
    lines = [
        f"**Here** ({where}):{said}",
        "",
        f"[![{_text(result.title)}, {where}]({THUMBNAILS}/{_flat(place)})]({place}/figure.png)",
        "",
        *(f"- {_claim(claim)}" for claim in result.verdicts),
        *_sweep(read_sweep(folder / place), place),
    ]
    cost = ""
    if result.training_seconds is not None:
        of = f"{len(result.runs)} runs, " if len(result.runs) > 1 else ""
        cost = f"{of}{duration(result.training_seconds)} of training{_machines(result)} · "
    files = [f"[claims]({place}/claims.json)", f"[settings and origin]({place}/experiment.json)"]
    packs = [f"{place.rpartition('/')[0]}/{PACKS}/{PACKED.replace('*', run.folder)}" for run in result.runs]
    files += [f"[record]({pack})" for pack in dict.fromkeys(packs) if (folder / pack).is_file()]
    return [*lines, "", f"{cost}`{result.command}` · {' · '.join(files)}"]


def _claim(claim: dict[str, Any]) -> str:
    threshold_text = _text(threshold(claim["threshold"]))
    measured = "" if claim["value"] is None else f": {number(claim['value'])} (claimed: {threshold_text})"
    return f"{SYMBOLS[claim['verdict']]} {claim['verdict']}. {_text(claim['statement'])}{measured}"


def _machines(result: Result) -> str:
    """On what the runs were trained, where all were trained on the same."""
    machines = {
        (run.origin("machine", "device"), run.origin("machine", "threads")) for run in result.runs if run.provenance
    }
    if len(machines) != 1:
        return ""
    ((device, threads),) = machines
    return f" on {device}" + (f", {threads} thread{'s' if threads > 1 else ''}" if isinstance(threads, int) else "")


def _sweep(claims: list[Across], place: str) -> list[str]:
    """How the claims fare over the jobs of a sweep, for instance over seeds, in one line."""
    if not claims:
        return []
    jobs = ", ".join(dict.fromkeys(job for claim in claims for job in claim.values))
    fared = (f"{_text(claim.id)} passes in {claim.passed} of {claim.jobs}{_spread(claim)}" for claim in claims)
    return ["", f"Over {_text(jobs)}: {', '.join(fared)} · [picture]({place}/{SWEEP_PICTURE})"]


def _spread(claim: Across) -> str:
    if claim.mean is None or claim.deviation is None:
        return ""
    return f" ({number(claim.mean)} ± {number(claim.deviation)})"


def _text(text: Any) -> str:
    """``text`` as Markdown shows it, whatever characters are in it."""
    return re.sub(r"([\\`*_\[\]<>|~])", r"\\\1", str(text))


def _results(folder: Path) -> list[Result]:
    """Those in ``folder``, by their place in it.

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
    """Where the thumbnail of each picture lies."""
    return {
        folder / THUMBNAILS / _flat(result.place_in(folder)): result.picture for result in results if result.picture
    }


def _made_of(path: Path) -> str:
    """The SHA-256 of the picture that the thumbnail at ``path`` was made of; empty for none of today's width."""
    try:
        with Image.open(path) as thumbnail:
            return str(thumbnail.getexif().get(DESCRIPTION, "")) if thumbnail.width == WIDTH else ""
    except OSError:
        return ""


def _shrink(picture: Picture, path: Path) -> None:
    try:
        with Image.open(picture.path) as full:
            upper = full.convert("RGB").crop((0, 0, full.width, min(full.height, full.width)))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # by the kind of the damage
        raise DamagedError(f"{picture.path} cannot be shown: {first_line(error)}; draw it again") from None
    small = upper.resize((WIDTH, round(upper.height * WIDTH / upper.width)), Image.Resampling.LANCZOS)
    exif = Image.Exif()
    exif[DESCRIPTION] = picture.sha256
    with replacing(path) as unfinished:
        small.save(unfinished, "webp", quality=QUALITY, exif=exif)
