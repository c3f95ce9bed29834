"""Branches leave their reference at its state, and train on what the intervention specifies."""

import numpy as np
import pytest
import torch
from composing import composed
from torch.nn import functional as F

from opposing_signals.app.completion import recorded
from opposing_signals.configuration import reference_of, run_folder
from opposing_signals.curvature.risk import EmpiricalRisk, flatten
from opposing_signals.data import planted
from opposing_signals.errors import InputError
from opposing_signals.record import Record
from opposing_signals.signals import Trajectory
from opposing_signals.studies.intervention.branches import branches_by_spike

KINDS = ("control", "remove_pair", "downweight_pair", "relabel_pair", "remove_random_1", "remove_random_2")


@pytest.fixture(scope="module")
def branches(tmp_path_factory):
    """Kind ↦ record, all for the largest spike, and the record of the reference."""
    folder = tmp_path_factory.mktemp("branches")
    records = {kind: recorded(configuration(folder, kind), None) for kind in KINDS}
    return records, Record(run_folder(reference_of(configuration(folder, "control"))))


def configuration(folder, kind: str, *overrides: str):
    return composed(
        "intervention", f"intervention={kind}", "intervention.lead=3", "intervention.window=8", "threads=1",
        *overrides, output_dir=folder,
    )  # fmt: skip


def test_branches_share_one_reference_and_one_spike(branches):
    records, reference = branches
    assert len(list(reference.folder.parent.iterdir())) == len(KINDS) + 1
    assert {record.provenance["branch"]["step"] for record in records.values()} == {50}
    (found,) = branches_by_spike({kind: Trajectory(record) for kind, record in records.items()}).values()
    assert found.spike_step - found.step >= 3
    assert set(found.runs) == {
        "control", "remove_pair", "downweight_pair", "relabel_pair", "remove_random 1", "remove_random 2",
    }  # fmt: skip
    assert found.names("remove_random") == ["remove_random 1", "remove_random 2"]
    losses = np.asarray(records["remove_pair"]["sample_loss"].values)
    touched = np.concatenate([record.provenance["branch"]["touched"] for record in records.values()]).astype(int)
    expected = np.delete(losses.astype(np.float64), touched, axis=1).mean(1)
    np.testing.assert_allclose(found.loss("remove_pair").values, expected)
    assert found.loss("remove_pair").steps.tolist() == list(range(50, 62))
    assert found.spike_size("remove_pair") == pytest.approx(max(0, np.diff(expected).max()))


def test_the_control_repeats_the_reference_bit_for_bit(branches):
    records, reference = branches
    whole = reference["sample_loss"].values[50:62]
    np.testing.assert_array_equal(records["control"]["sample_loss"].values, whole)


def test_the_pair_is_that_of_the_steps_before_the_branch(branches):
    records, reference = branches
    touched = records["remove_pair"].provenance["branch"]["touched"]
    for kind in ("downweight_pair", "relabel_pair"):
        assert records[kind].provenance["branch"]["touched"] == touched
    draws = [set(records[f"remove_random_{draw}"].provenance["branch"]["touched"]) for draw in (1, 2)]
    assert draws[0] != draws[1]
    for draw in draws:
        assert len(draw) == len(touched)
        assert not draw & set(touched)
    changes = np.abs(np.diff(reference["sample_loss"].values[42:51], axis=0))
    assert np.median(changes[:, touched]) > 3 * np.median(changes)


@pytest.mark.parametrize("kind", ["remove_pair", "downweight_pair", "relabel_pair"])
def test_the_first_step_follows_the_changed_loss(branches, kind):
    records, reference = branches
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(3072, 16), torch.nn.ReLU(), torch.nn.Linear(16, 16), torch.nn.ReLU(),
        torch.nn.Linear(16, 6),
    ).double()  # fmt: skip
    data, touched = planted(images=200), records[kind].provenance["branch"]["touched"]
    theta = torch.from_numpy(np.array(reference["parameters"].at(50))).double()
    torch.nn.utils.vector_to_parameters(theta, model.parameters())
    weights, targets = torch.ones(200, dtype=torch.float64), data.targets.clone()
    if kind == "relabel_pair":
        values, counts = targets[touched].unique(return_counts=True)
        targets[touched] = values[counts.argmax()]
        assert records[kind]["sample_loss"].values[0].mean() != records["control"]["sample_loss"].values[0].mean()
    else:
        weights[touched] = {"remove_pair": 0.0, "downweight_pair": 0.5}[kind]
        np.testing.assert_array_equal(*(records[k]["sample_loss"].values[0] for k in (kind, "control")))
    losses = F.cross_entropy(model(data.inputs.double()), targets, reduction="none")
    gradient = flatten(torch.autograd.grad((weights * losses).sum() / weights.sum(), list(model.parameters())))
    torch.nn.utils.vector_to_parameters(theta - 0.1 * gradient, model.parameters())
    after = F.cross_entropy(model(data.inputs.double()), targets, reduction="none")
    np.testing.assert_allclose(records[kind]["sample_loss"].values[1], after.detach(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("intervention.spike=9",), "intervention.spike=9: .* spikes with an opposing pair before them"),
        (("optimizer.momentum=0.9",), "momentum=0.9.*: expected full-batch gradient descent without momentum"),
    ],
)
def test_what_cannot_branch_is_refused(branches, overrides, message):
    _, reference = branches
    folder = reference.folder.parents[1]
    if "momentum" in overrides[0]:
        overrides = (*overrides, "reference.steps=30")
    with pytest.raises(InputError, match=message):
        recorded(configuration(folder, "remove_pair", *overrides), None)


def test_weights_enter_gradient_and_hessian_products():
    torch.manual_seed(0)
    x, y = torch.randn(7, 3, dtype=torch.float64), torch.randint(2, (7,))
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).double()
    loss = torch.nn.CrossEntropyLoss(reduction="none")
    risk = EmpiricalRisk(model, loss, x, y, chunk=3, precision="float64", channels_last=False)
    weights = torch.rand(7, dtype=torch.float64)
    risk.weights = weights
    names, sizes = [n for n, _ in model.named_parameters()], [p.numel() for p in model.parameters()]

    def weighted(theta, rows=slice(None)):
        pieces = theta.split(sizes)
        state = {n: v.view_as(p) for n, v, p in zip(names, pieces, model.parameters(), strict=True)}
        losses = loss(torch.func.functional_call(model, state, (x[rows],)), y[rows])
        return (weights[rows] * losses).sum() / weights[rows].sum()

    theta = flatten([p.detach() for p in model.parameters()])
    vectors = torch.randn(2, len(theta), dtype=torch.float64)
    gradient = torch.autograd.functional.jacobian(weighted, theta)
    hessian = torch.autograd.functional.hessian(weighted, theta)
    risk.backward()
    torch.testing.assert_close(flatten([p.grad for p in model.parameters()]), gradient)
    model.zero_grad()
    seen = risk.backward_with_products(vectors)
    torch.testing.assert_close(flatten([p.grad for p in model.parameters()]), gradient)
    torch.testing.assert_close(seen.products, vectors @ hessian)
    risk.weights = None
    slopes = risk.hessian_products(vectors).slopes
    torch.testing.assert_close(seen.slopes, slopes)  # per point, independent of the weights
    risk.weights = weights
    rows = torch.tensor([5, 0, 2, 6])
    model.zero_grad()
    risk.backward(rows)
    expected = torch.autograd.functional.jacobian(lambda t: weighted(t, rows), theta)
    torch.testing.assert_close(flatten([p.grad for p in model.parameters()]), expected)
