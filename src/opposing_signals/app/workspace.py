"""A W&B workspace for the runs of an experiment: panels for what `Dashboard` logs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from opposing_signals.app.dashboard import CHANGES, EDGE, member_names, pair_names
from opposing_signals.choices import composed
from opposing_signals.errors import InputError
from opposing_signals.experiments import named
from opposing_signals.record.quantities import SHARPNESS, SHARPNESS_BOUND, TEST_ACCURACY, TRAIN_LOSS

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

STEP = "trainer/global_step"
"""Training steps. W&B's own steps count rows, and a training step has two: one of the step, one after the run."""
PAIRS = range(1, 5)
"""The numbers of the opposing pairs that have panels."""


def workspace(experiment: str, entity: str, project: str = "opposing-signals") -> Workspace:
    """Describe a workspace for the runs of ``experiment``; its ``save()`` creates it, which needs an account.

    Args:
        experiment: Its name, or a unique prefix of it.
        entity: The user or team that owns the project.
        project: As in ``logger.project``.

    Raises:
        InputError: There is no such experiment, or the package wandb-workspaces is not installed.
    """
    try:
        import wandb_workspaces.reports.v2 as panels
        import wandb_workspaces.workspaces as workspaces
    except ModuleNotFoundError as error:
        raise InputError(f"{error}; pip install 'opposing-signals[workspaces]'") from None
    experiment = named(experiment)
    claims = composed(f"experiment={experiment}", "logger=none").claims
    lines: dict[str, dict[str, Sequence[str]]] = {
        "Losses": {
            "train loss": [TRAIN_LOSS],
            "test accuracy": [TEST_ACCURACY],
            "largest one-step changes of an example's loss": CHANGES[:2],
            "fraction of the examples whose loss rises": CHANGES[2:],
        },
        "Opposing pairs": {f"losses of pair {number}": [*pair_names(number), TRAIN_LOSS] for number in PAIRS},
        "Sharpness": {"sharpness and 2/η": [SHARPNESS, SHARPNESS_BOUND, EDGE]},
    }
    shown: dict[str, list[Any]] = {
        section: [panels.LinePlot(x=STEP, title=title, y=list(names)) for title, names in plots.items()]
        for section, plots in lines.items()
    }
    shown["Claims"] = [
        panels.BarPlot(title=f"{name}: {claim.statement}", metrics=[panels.SummaryMetric(f"claim/{name}")])
        for name, claim in claims.items()
    ]
    shown["Pictures"] = [panels.MediaBrowser(media_keys=keys) for keys in (["figure"], *map(member_names, PAIRS))]
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=experiment,
        sections=[workspaces.Section(name=name, panels=drawn, is_open=True) for name, drawn in shown.items() if drawn],
        runset_settings=workspaces.RunsetSettings(filters=workspaces.And(workspaces.Tags().isin([experiment]))),
        auto_generate_panels=True,  # for everything else that a run logs
    )
