import itertools

import pytest
import torch

from opposing_signals.errors import InputError
from opposing_signals.training.batches import Batches


def first(batches: Batches, count: int, step: int = 0) -> list:
    batches.begin_at(lambda: step)
    return list(itertools.islice(batches, count))


def test_full_batches_are_the_whole_set():
    assert first(Batches(10, None), 3) == [slice(0, 10)] * 3


def test_an_epoch_visits_every_example_once_and_epochs_differ():
    drawn = first(Batches(10, 4, seed=3), 6)
    assert [len(batch) for batch in drawn] == [4, 4, 2, 4, 4, 2]
    epochs = [torch.cat(drawn[:3]), torch.cat(drawn[3:])]
    assert all(sorted(epoch.tolist()) == list(range(10)) for epoch in epochs)
    assert epochs[0].tolist() != epochs[1].tolist()


@pytest.mark.parametrize("step", [0, 1, 2, 3, 4, 7])
def test_beginning_at_a_step_gives_what_an_uninterrupted_iteration_gives(step):
    whole = first(Batches(10, 4, seed=3), 12)
    for ours, theirs in zip(first(Batches(10, 4, seed=3), 4, step), whole[step:], strict=False):
        assert torch.equal(ours, theirs)


def test_seeds_decide_the_order():
    assert not torch.equal(first(Batches(50, 50, seed=1), 1)[0], first(Batches(50, 50, seed=2), 1)[0])


@pytest.mark.parametrize("size", [0, -3, 11])
def test_a_batch_that_cannot_be_is_refused(size):
    with pytest.raises(InputError, match=f"batch={size}: expected 1 to 10"):
        Batches(10, size)
