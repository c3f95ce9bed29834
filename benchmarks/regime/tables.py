"""The rows of ``regime.json`` and ``eigenvectors.json`` as tables of Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from grid import WITH_BATCH_NORM, is_ghost
from measures import median

NETWORKS = {
    "mlp": "MLP 3072-{0}-{0}-10",
    "vgg11": "VGG-11 w{0}",
    "vgg11bn": "VGG-11-BN w{0}",
    "resnet18": "ResNet-18 w{0}",
    "vit": "ViT w{0}",
}

HEAD = (
    "| network | N, chunk | η | loss, accuracy at step | break-even | λ/(2/η) | class R² | coherence | corr | "
    "amplitude | alternates | in one chunk | 20 up / 20 down | CPU s |"
)


def as_table(rows: list[dict[str, Any]]) -> str:
    """The rows as a table of Markdown."""
    return "\n".join([HEAD, "|" + "---|" * (HEAD.count("|") - 1), *(_line(row) for row in rows)])


def _line(row: Mapping[str, Any]) -> str:
    cells = [
        NETWORKS[row["network"]].format(row["width"]) + (f", seed {row['seed']}" if row["seed"] > 1 else ""),
        f"{row['images']:,}, {row['chunk']:,}" if row["network"] in WITH_BATCH_NORM else f"{row['images']:,}",
        f"{row['eta']:g}",
        f"{_cell(row['loss_last'])}, {_cell(row['accuracy_last'])} at {row['steps'] - 1}",
        _cell(row["break_even"]),
        _cell(row["sharpness_over_edge_late"]),
        _cell(row["class_r2"]),
        _cell(row["coherence"]) + ("" if row["coherence"] is None else f" ({_cell(row['coherence_smallest'])})"),
        _cell(row["correlation"]),
        _cell(row["amplitude"]),
        _cell(row["alternating_share"]),
        _in_one_chunk(row) if is_ghost(row) else "",
        _extremes(row["widest"]),
        _cell(row["cpu_seconds"]),
    ]
    return "| " + " | ".join(cells) + " |"


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}" if isinstance(value, float) and abs(value) < 10 else f"{value:.0f}"


def _in_one_chunk(row: Mapping[str, Any]) -> str:
    """Largest fraction of a group's members in one batch-norm chunk, and the same by chance; medians over groups."""
    groups = [group for pair in row["pairs"] for group in pair["groups"]]
    if not groups:
        return ""
    return " / ".join(
        _cell(median([group[name] for group in groups])) for name in ("chunk_share", "chunk_share_by_chance")
    )


def _extremes(widest: Mapping[str, Any] | None) -> str:
    if widest is None:
        return ""
    first = [next(iter(widest[side].items())) for side in ("rising", "falling")]
    return " / ".join(f"{count} {name}" for name, count in first)


def _eigenvector(vector: Mapping[str, Any], eta: float) -> str:
    value = vector["eigenvalue"]
    doubt = "~" if vector["residual"] > value / 5 else ""
    return f"{doubt}{_cell(value * eta / 2)}: {_cell(vector['class_r2'])}"


def eigenvector_table(rows: list[dict[str, Any]]) -> str:
    """The rows of ``eigenvectors.json`` as a table of Markdown, λ over 2/η; ~ where the residual is above λ/5."""
    head = "| network | η | step, loss | λ_k/(2/η): class R² of the slopes along v_k |"
    lines = [
        f"| {NETWORKS[row['network']].format(row['width'])} | {row['eta']:g} | {row['step']}, {_cell(row['loss'])} | "
        + ", ".join(_eigenvector(vector, row["eta"]) for vector in row["eigenvectors"])
        + " |"
        for row in rows
    ]
    return "\n".join([head, "|---|---|---|---|", *lines])
