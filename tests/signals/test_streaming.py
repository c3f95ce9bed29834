import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opposing_signals.errors import InputError
from opposing_signals.signals import fallers, risers
from opposing_signals.signals.streaming import LossChangeStream


def losses(count: int, seed: int = 0, ties: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    before, change = generator.random(count), generator.standard_normal(count)
    if ties:
        before, change = np.round(2 * before), np.round(change)
    return np.arange(count), before.astype(np.float32), (before + change).astype(np.float32)


def streamed(points, cuts=(), order=None, **settings) -> LossChangeStream:
    stream = LossChangeStream(**{"k": 5, "sample": 7, **settings})
    order = np.arange(len(points[0])) if order is None else order
    for rows in np.split(order, cuts):
        stream.update(*(part[rows] for part in points))
    return stream


def contents(stream: LossChangeStream) -> list[list[float]]:
    groups = (stream.risers, stream.fallers, stream.sample)
    return [part.tolist() for group in groups for part in (group.ids, group.before, group.after)]


def test_groups_are_those_of_a_selection_that_sees_all():
    ids, before, after = losses(1000)
    stream = streamed((ids, before, after), cuts=[100, 101, 640])
    changes = after - before
    assert stream.risers.ids.tolist() == risers(changes, 5).tolist()
    assert stream.fallers.ids.tolist() == fallers(changes, 5).tolist()
    np.testing.assert_array_equal(stream.risers.changes, changes[stream.risers.ids])
    np.testing.assert_array_equal(stream.sample.before, before[stream.sample.ids])
    np.testing.assert_array_equal(stream.sample.after, after[stream.sample.ids])
    assert (stream.count, stream.rising) == (1000, (changes > 0).sum())


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 60), seed=st.integers(0, 100), ties=st.booleans(), data=st.data())
def test_neither_order_nor_chunks_nor_processes_matter(count, seed, ties, data):
    points = losses(count, seed, ties)
    cuts = sorted(data.draw(st.lists(st.integers(0, count), max_size=5)))
    order = np.random.default_rng(seed).permutation(count)
    whole = contents(streamed(points))
    assert contents(streamed(points, cuts, order)) == whole
    ids, before, after = points
    changes = after - before
    assert whole[0] == np.lexsort((ids, -changes))[:5].tolist()
    assert whole[3] == np.lexsort((ids, changes))[:5].tolist()
    part = data.draw(st.integers(0, count))
    one, other = (streamed(tuple(values[rows] for values in points)) for rows in (order[:part], order[part:]))
    one.merge(other)
    assert contents(one) == whole
    assert (one.count, one.rising) == (count, (changes > 0).sum())


def test_every_point_is_as_likely_in_the_sample():
    points = losses(50)
    samples = [streamed(points, sample=10, seed=seed).sample.ids for seed in range(2000)]
    assert all(len(np.unique(sample)) == 10 for sample in samples)
    drawn = np.bincount(np.concatenate(samples), minlength=50)
    # Each count is binomial with mean 400 and variance 320, and they sum to 20,000: chi-square with 49 degrees.
    chi_square = ((drawn - 400) ** 2 / 320).sum() * 49 / 50
    assert 24 < chi_square < 86  # outside with a probability of 0.002
    together = sum(7 in sample and 8 in sample for sample in samples) / 2000
    assert together == pytest.approx(10 * 9 / (50 * 49), abs=0.018)


def test_every_step_has_the_same_sample():
    steps = [streamed(losses(300, seed)) for seed in range(3)]
    assert steps[0].sample.ids.tolist() == steps[1].sample.ids.tolist() == steps[2].sample.ids.tolist()
    assert steps[0].risers.ids.tolist() != steps[1].risers.ids.tolist()


def test_tensors_are_taken():
    points = losses(40)
    tensors = tuple(torch.from_numpy(part) for part in points)
    stream = LossChangeStream(5, 7)
    stream.update(*tensors)
    assert contents(stream) == contents(streamed(points))
    assert stream.risers.before.dtype == np.float32


def test_what_is_kept_does_not_grow():
    stream = streamed(losses(5000), cuts=range(100, 5000, 100), k=3, sample=4)
    assert (len(stream.risers), len(stream.fallers), len(stream.sample)) == (3, 3, 4)
    kept = [part.base if part.base is not None else part for part in vars(stream.risers).values()]
    assert sum(part.nbytes for part in kept) < 1000
    assert len(streamed(losses(100), sample=0).sample) == 0


def test_what_cannot_be_tracked_is_refused():
    with pytest.raises(InputError, match="k=0: expected at least 1"):
        LossChangeStream(0)
    with pytest.raises(InputError, match="sample=-1: expected at least 0"):
        LossChangeStream(1, -1)
    stream = LossChangeStream(2)
    with pytest.raises(InputError, match=r"of shapes \[3\], \[2\], \[3\]: expected one length"):
        stream.update(np.arange(3), np.zeros(2), np.zeros(3))
    for value in (np.nan, np.inf, -np.inf):
        with pytest.raises(InputError, match=r"the loss of point 12 goes from 0\.0 to"):
            stream.update(np.array([11, 12]), np.zeros(2), np.array([0, value]))
    assert stream.count == 0
