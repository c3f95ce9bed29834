"""Groups planted in scikit-learn's digits are named, both sides, with and without a spike."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from opposing_signals import Follower
from opposing_signals.follow.explanation import explain

DIGITS = load_digits()


def striped():
    """30 zeros and 30 ones with the same stripe: what lowers the loss of the zeros raises that of the ones."""
    images, labels = DIGITS.images.copy() / 16, DIGITS.target.copy()
    groups = [np.flatnonzero(labels == digit)[:30] for digit in (0, 1)]
    for group in groups:
        images[group] = 0
        images[group, :, 2:6] = 2.0
    return images, labels, groups


def mislabelled():
    """40 threes that are labelled as nines, against the threes with correct labels."""
    images, labels = DIGITS.images.copy() / 16, DIGITS.target.copy()
    threes = np.flatnonzero(labels == 3)
    labels[threes[:40]] = 9
    return images, labels, [threes[:40], threes[40:]]


NAMED = 20


@pytest.mark.parametrize("plant", [striped, mislabelled])
@pytest.mark.parametrize(("learning_rate", "steps"), [(0.5, 140), (0.1, 300)])
def test_planted_groups_are_named_on_both_sides(tmp_path, plant, learning_rate, steps):
    images, labels, groups = plant()
    x, y = torch.tensor(images.reshape(len(images), -1), dtype=torch.float32), torch.tensor(labels)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    follower = Follower(
        TensorDataset(x, y), lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none"), folder=tmp_path / "run",
        budget=None, groups={"planted": groups[0]}, track=len(x),
    )  # fmt: skip
    for _ in range(steps):
        rows = torch.randint(len(x), (128,))
        with follower.step(model, optimizer, batch=(x[rows], y[rows]), batch_indices=rows):
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    follower.close()
    told = explain(tmp_path / "run")
    pair, planted = told.findings["pairs"][0], [set(group.tolist()) for group in groups]
    sides = [pair["rising"], pair["falling"]]
    if len(planted[0] & set(sides[0])) < len(planted[0] & set(sides[1])):
        sides.reverse()
    for side, members in zip(sides, planted, strict=True):
        assert len(members & set(side)) > 0.9 * len(members)  # others of their class may follow them
        assert len(members & set(side[:NAMED])) >= 0.75 * NAMED  # the named members move most
    assert "of them in group planted" in str(told)
