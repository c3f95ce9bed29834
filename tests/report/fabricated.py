import json
from pathlib import Path
from typing import Any

from PIL import Image

from opposing_signals.studies.claim import FAIL, INCONCLUSIVE, NOT_RUN, PASS, Verdict


def verdict(claim: str, verdict: str, **changes: Any) -> dict[str, Any]:
    """A claim as in ``claims.json``, made by the class that writes it."""
    value = None if verdict in (INCONCLUSIVE, NOT_RUN) else -0.97131
    fields = {
        "id": claim,
        "statement": f"What {claim} states about the losses of the two groups, in a sentence of common length",
        "source": "Figure 1, §2.1",
        "statistic": f"Statistic of {claim}; steps = 0.05",
        "threshold": ">= -0.8",
        "value": value,
        "interval": None if value is None else [-0.9834, -0.9513],
        "verdict": verdict,
        "scale": "cpu",
        "data": "cifar10 (2500 of 50000 images)",
        "seed": 1,
    }
    return Verdict(**{**fields, **changes}).as_json()


def run(**configuration: Any) -> dict[str, Any]:
    """A run as in ``experiment.json``."""
    return {
        "folder": "resnet18_gd-cpu-seed1-191c15e8",
        "configuration": {
            "data": {"_target_": "opposing_signals.data.cifar10", "images": 2500},
            "model": {"_target_": "opposing_signals.models.resnet18", "width": 16},
            "optimizer": {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.01},
            "batch": None,
            "risk": {"chunk": 250, "precision": "float32"},
            "steps": 200,
            "seed": 1,
            **configuration,
        },
        "provenance": {
            "started": "2026-01-02T03:04:05+00:00",
            "data": {"name": "cifar10 (2500 of 50000 images)", "sha256": "0123456789abcdef" * 4, "examples": 2500},
            "versions": {"python": "3.11.7", "torch": "2.13.0"},
            "commit": "0a1b2c3d4e5f",
            "machine": {"device": "x86_64", "threads": 2, "system": "Linux"},
            "training_seconds": 642.0,
        },
    }


def write_result(folder: Path, claims: Any = None, size: tuple[int, int] = (1800, 585), **description: Any) -> Path:
    """Write a result as an experiment writes it; ``description`` replaces parts of ``experiment.json``."""
    described = {
        "name": folder.name,
        "title": f"Title of {folder.name}",
        "command": f"opposing-signals experiment={folder.name} scale=cpu",
        "scale": "cpu",
        "seed": 1,
        "drawn": "2026-01-02T04:00:00+00:00",
        "runs": {"resnet18_gd": run()},
        **description,
    }
    if claims is None:
        claims = [verdict(f"{folder.name}{i}", v) for i, v in enumerate((PASS, FAIL, INCONCLUSIVE, NOT_RUN))]
    folder.mkdir(parents=True)
    (folder / "experiment.json").write_text(json.dumps(described))
    (folder / "claims.json").write_text(json.dumps(claims))
    Image.new("RGB", size, "steelblue").save(folder / "figure.png")
    return folder
