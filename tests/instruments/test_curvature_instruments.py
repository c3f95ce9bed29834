"""What the curvature instruments write, and that a resumed run writes the same."""

import itertools

import numpy as np
import pytest
import torch
from composing import composed
from hydra.utils import instantiate
from omegaconf import OmegaConf
from recording import assert_same, assert_same_weights, stopped, trained

from opposing_signals.choices import written
from opposing_signals.curvature.tracking import COLD_PRODUCTS
from opposing_signals.errors import InputError
from opposing_signals.instruments.sharpness import Sharpness
from opposing_signals.record import Record
from opposing_signals.training.batches import Batches
from opposing_signals.training.job import training_module

CURVE = ("fig03_chebyshev", "steps=5", "threads=1", "risk.chunk=8")  # an MLP on 20 points
IMAGES = (
    "fig01_group_losses",
    "data=planted",
    "data.images=20",
    "risk.chunk=8",
    "model.width=2",
    "steps=3",
    "threads=1",
)
ADAM = {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.002}
BASE = ("sample_losses", "train_loss", "sharpness")
CONFIGURED = {
    "sharpness": {"every": 2, "consecutive": 1, "max_products": 2},
    "gradient_norms": {"every": 2},
    "gradient_sketch": {"every": 2, "dimensions": 6},
    "sample_sharpness": {"every": 2, "consecutive": 1, "count": 2, "max_products": 4},
    "jacobian": {"every": 2, "points": 5},
    "gauss_newton": {"every": 2},
    "spectral_density": {"every": 4, "probes": 2, "steps": 3},
    "preconditioned_sharpness": {"every": 2, "max_products": 3},
    "batch_sharpness": {"every": 2, "batches": 2},
}


def configured(*instruments: str, run=CURVE, base=BASE, minibatch: bool = False, adam: bool = False):
    config = composed(*run)
    OmegaConf.set_struct(config, False)
    config.instruments = {}
    for name in (*base, *instruments):
        settings = written("instruments", name)
        config.instruments = OmegaConf.merge(config.instruments, settings, {name: CONFIGURED.get(name, {})})
    if minibatch:
        config.batch = 7
    if adam:
        config.optimizer = ADAM
    return config


FULL_BATCH = (
    "gradient_norms",
    "gradient_sketch",
    "sample_sharpness",
    "jacobian",
    "gauss_newton",
    "spectral_density",
    "preconditioned_sharpness",
)


@pytest.fixture(scope="module")
def record(tmp_path_factory) -> Record:
    return trained(tmp_path_factory.mktemp("run"), configured(*FULL_BATCH, adam=True))


def test_each_quantity_has_its_shape_at_its_steps(record):
    expected = {
        "gradient_norm": ([0, 2, 4], (20,)),
        "gradient_sketch": ([0, 2, 4], (20, 6)),
        "sample_sharpness": ([2, 4], (6,)),
        "sample_sharpness_residual": ([2, 4], (6,)),
        "sample_sharpness_points": ([2, 4], (6,)),
        "jacobian_norm": ([0, 2, 4], ()),
        "jacobian_norm_max": ([0, 2, 4], ()),
        "layer_norms": ([0, 2, 4], (3,)),
        "layer_alignment": ([0, 2, 4], (2,)),
        "sharpness_gauss_newton": ([0, 2, 4], ()),
        "sharpness_functional": ([0, 2, 4], ()),
        "density_nodes": ([0, 4], (6,)),
        "density_weights": ([0, 4], (6,)),
        "preconditioned_sharpness": ([2, 4], ()),
        "preconditioned_sharpness_quotient": ([2, 4], ()),
        "preconditioned_sharpness_residual": ([2, 4], ()),
        "preconditioned_sharpness_bound": ([2, 4], ()),
        "preconditioned_sharpness_products": ([2, 4], ()),
    }
    for quantity, (steps, shape) in expected.items():
        series = record[quantity]
        assert (series.steps.tolist(), series.values.shape[1:]) == (steps, shape), quantity
        assert np.isfinite(series.values).all(), quantity


def test_the_points_are_those_whose_loss_changed_most_in_the_last_step(record):
    losses, points = record["sample_loss"].values, record["sample_sharpness_points"]
    for step, row in zip(points.steps, points.values, strict=True):
        order = np.argsort(losses[step] - losses[step - 1])
        assert row[:2].tolist() == order[::-1][:2].tolist()
        assert row[2:4].tolist() == order[:2].tolist()
    assert points.values[0, 4:].tolist() == points.values[1, 4:].tolist()
    assert points.values.dtype == np.int64


def test_the_parts_of_the_sharpness_sum_to_it(record):
    total = record["sharpness_gauss_newton"].values + record["sharpness_functional"].values
    np.testing.assert_allclose(total, record["sharpness_quotient"].values, rtol=1e-4)
    assert (record["sharpness"].values >= record["sharpness_quotient"].values).all()
    assert (record["sharpness_bound"].values >= record["sharpness_quotient"].values).all()


def test_the_first_measurement_is_as_exact_as_the_others(tmp_path):
    config = configured(run=IMAGES)
    config.instruments.sharpness.update(every=1, tolerance=1e-3, max_products=60)
    found = trained(tmp_path, config)
    assert found["sharpness_products"].values[0] > COLD_PRODUCTS, "otherwise this shows nothing"
    assert found["sharpness_residual"].values[0] <= 1e-3 * found["sharpness_quotient"].values[0]


def test_mean_and_maximum_of_the_jacobian(record):
    assert (record["jacobian_norm"].values <= record["jacobian_norm_max"].values).all()


@pytest.mark.parametrize("run", [CURVE, IMAGES], ids=["curve", "images"])
def test_training_is_bit_identical_with_and_without_them(run, tmp_path):
    instruments = ("gradient_norms", "gradient_sketch", "sample_sharpness", "jacobian", "spectral_density")
    if run is CURVE:
        instruments += ("sharpness", "gauss_newton")
    watched = trained(tmp_path / "watched", configured(*instruments, run=run, base=()))
    assert_same_weights(watched, trained(tmp_path / "alone", configured(run=run, base=())))


@pytest.mark.parametrize("step", [1, 3, 4])
def test_a_resumed_run_measures_what_an_uninterrupted_one_does(record, step, tmp_path, monkeypatch):
    config = configured("gradient_sketch", "sample_sharpness", "gauss_newton", "preconditioned_sharpness", adam=True)
    stopped(tmp_path, config, step, monkeypatch)
    resumed = trained(tmp_path, config)
    for quantity in resumed:
        np.testing.assert_array_equal(resumed[quantity].steps, record[quantity].steps, quantity)
        np.testing.assert_array_equal(resumed[quantity].values, record[quantity].values, quantity)


def test_batch_sharpness_under_minibatch_training(tmp_path):
    found = trained(tmp_path, configured("batch_sharpness", minibatch=True))
    assert found["batch_sharpness"].steps.tolist() == [0, 2, 4]
    assert np.isfinite(found["batch_sharpness"].values).all()
    assert (found["batch_sharpness_error"].values >= 0).all()


def test_batch_sharpness_measures_other_batches_than_those_of_training(tmp_path, monkeypatch):
    measured = []
    monkeypatch.setattr(
        "opposing_signals.instruments.batch_sharpness.batch_sharpness",
        lambda _, batch: measured.append(tuple(batch.tolist())) or 1.0,
    )
    config = configured("batch_sharpness", minibatch=True)
    config.seed = 0
    trained(tmp_path, config)
    of_training = {tuple(batch.tolist()) for batch in itertools.islice(Batches(20, 7, seed=0), 30)}
    assert len({*measured}) == 6
    assert not of_training & {*measured}


@pytest.mark.parametrize(
    ("instrument", "settings", "message"),
    [
        ("sample_sharpness", {"minibatch": True}, "SampleSharpness: batch=7: expected full-batch training"),
        ("batch_sharpness", {}, "BatchSharpness: batch=null: expected minibatch training"),
        ("preconditioned_sharpness", {}, "the optimizer is SGD: expected"),
    ],
)
def test_instruments_that_do_not_fit_the_run_are_refused(instrument, settings, message, tmp_path):
    with pytest.raises(InputError, match=message):
        trained(tmp_path, configured(instrument, **settings))


def with_strides(**strides: tuple[int, int]):
    config = configured(*strides, base=())
    for name, (every, consecutive) in strides.items():
        config.instruments[name].update(every=every, consecutive=consecutive)
    return config


@pytest.mark.parametrize(
    ("strides", "message"),
    [
        ({"gauss_newton": (2, 1)}, "gauss_newton has every=2, .*; there is none: step 0"),
        ({"sharpness": (2, 1), "gauss_newton": (3, 1)}, "gauss_newton has .*; sharpness has every=2, .*: step 3 is"),
        ({"sharpness": (2, 1), "sample_curvature": (2, 2)}, "sample_curvature has every=2, consecutive=2.*: step 1 is"),
        ({"sharpness": (2, 1), "break_even": (4, 1)}, "break_even has every=4, .*; sharpness has every=2, .*: step 2"),
        ({"break_even": (1, 1)}, "break_even has every=1, .*; there is none: step 0"),
    ],
)
def test_what_others_must_measure_is_asked_for_before_training(strides, message, tmp_path):
    with pytest.raises(InputError, match=message):
        trained(tmp_path, with_strides(**strides))
    assert not [*tmp_path.glob("*.npy"), *tmp_path.glob("*.ckpt")]


@pytest.mark.parametrize(
    ("strides", "steps"),
    [
        ({"sample_curvature": (4, 1), "gauss_newton": (2, 2), "sharpness": (2, 2)}, [0, 4]),
        ({"sharpness": (2, 1), "break_even": (1, 1), "sample_curvature": (6, 1)}, [0]),
    ],
)
def test_strides_that_fit_measure_at_their_own_steps_in_any_order(strides, steps, tmp_path):
    record = trained(tmp_path / "one", with_strides(**strides))
    assert record["sample_curvature"].steps.tolist() == steps
    other = trained(tmp_path / "other", with_strides(**dict(reversed(strides.items()))))
    assert_same(record, other)


def test_only_plain_descent_has_a_break_even(tmp_path):
    with pytest.raises(InputError, match="BreakEven: optimizer Adam: expected SGD without momentum"):
        trained(tmp_path, configured("break_even", adam=True))


@pytest.mark.parametrize("count", [0, 21])
def test_more_points_than_there_are_cannot_be_chosen(count, tmp_path):
    config = configured("sample_sharpness")
    config.instruments.sample_sharpness.count = count
    with pytest.raises(Exception, match=f"SampleSharpness: count={count}: expected 1 to 20"):
        trained(tmp_path, config)


# -- products by differences ------------------------------------------------------------------------------------------


def by_differences(*instruments: str, **settings):
    config = configured(*instruments, **settings)
    config.instruments.sharpness.update(every=1, max_products=8, products="differences")
    return config


@pytest.fixture(scope="module")
def of_differences(tmp_path_factory) -> Record:
    return trained(tmp_path_factory.mktemp("differences"), by_differences())


def test_by_differences_the_last_product_is_exact(of_differences, tmp_path):
    config = configured()
    config.instruments.sharpness.update(every=1, max_products=8)
    exact = trained(tmp_path, config)
    for quantity, tolerance in (("sharpness", 0.01), ("sharpness_quotient", 0.01), ("sharpness_bound", 0.05)):
        np.testing.assert_allclose(of_differences[quantity].values, exact[quantity].values, rtol=tolerance)
    error = of_differences["sharpness_error"].values / of_differences["sharpness_quotient"].values
    assert ((error > 0) & (error < 0.01)).all()
    assert "sharpness_error" not in exact


def test_training_is_bit_identical_with_and_without_differences(tmp_path, caplog):
    watched = trained(tmp_path / "watched", by_differences("sample_curvature", "gauss_newton"))
    assert_same_weights(watched, trained(tmp_path / "alone", configured(base=())))
    assert watched["sharpness"].steps.tolist() == list(range(len(watched["train_loss"])))
    assert not caplog.records


def test_of_relus_they_are_refused_at_the_start_and_told_of_once_later(tmp_path, caplog, monkeypatch):
    with pytest.raises(InputError, match=r"of λ off at step 0: the loss is not smooth, .*products=exact$"):
        trained(tmp_path / "begun", by_differences(run=IMAGES))
    config = by_differences(run=IMAGES)
    module = training_module(config, instantiate(config.data))
    monkeypatch.setattr(module, "request_gradient", lambda then: then(None))
    with Record.writing(tmp_path / "later", {}) as record:
        instrument = Sharpness(module.risk, record, products="differences")
        for step in (1, 2):
            instrument.before_step(module, step)
    assert sum("the loss is not smooth" in line.getMessage() for line in caplog.records) == 1


@pytest.mark.parametrize("step", [1, 3])
def test_a_resumed_run_has_the_differences_of_an_uninterrupted_one(of_differences, step, tmp_path, monkeypatch):
    stopped(tmp_path, by_differences(), step, monkeypatch)
    assert_same(trained(tmp_path, by_differences()), of_differences)


def test_differences_under_minibatch_training_and_of_a_part_of_the_examples(tmp_path):
    for name, products in (("one", "differences"), ("other", "exact")):
        config = configured(minibatch=True)
        config.instruments.sharpness.update(every=1, max_products=8, examples=9, products=products)
        trained(tmp_path / name, config)
    one, other = (Record(tmp_path / name)["sharpness"].values for name in ("one", "other"))
    np.testing.assert_allclose(one, other, rtol=0.01)


def test_where_nothing_is_exact_one_line_says_so_and_the_error_covers(of_differences, tmp_path, monkeypatch, caplog):
    def refused(*_):
        raise InputError("no second derivative")

    monkeypatch.setattr("opposing_signals.curvature.risk.EmpiricalRisk.hessian_products", refused)
    record = trained(tmp_path, by_differences())
    assert [line.getMessage() for line in caplog.records if "no exact product" in line.getMessage()] == [
        "λ has no exact product, and its error is that of differences: no second derivative"
    ]
    off = abs(record["sharpness_quotient"].values - of_differences["sharpness_quotient"].values)
    assert (off <= record["sharpness_error"].values + 1e-4 * record["sharpness_quotient"].values).all()


def test_other_products_are_refused(tmp_path):
    config = configured()
    config.instruments.sharpness.products = "quick"
    with pytest.raises(Exception, match="Sharpness: products=quick: expected exact or differences"):
        trained(tmp_path, config)


class WithUnusedLayer(torch.nn.Module):
    """Has parameters that no loss depends on."""

    def __init__(self, input_shape: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.used = torch.nn.Sequential(
            torch.nn.Linear(*input_shape, 16), torch.nn.Tanh(), torch.nn.Linear(16, outputs)
        )
        self.unused = torch.nn.Linear(2, 2)

    def forward(self, values):
        return self.used(values)


@pytest.mark.parametrize("model", [None, "test_curvature_instruments.WithUnusedLayer"])
def test_the_expansion_of_a_step_is_the_change_that_it_makes(model, tmp_path):
    config = configured("sample_curvature")
    config.instruments.sample_curvature.expansion = True
    config.instruments.sharpness.every = config.instruments.sample_curvature.every = 1
    config.optimizer.lr, config.risk.precision = 0.01, "float64"
    if model is not None:
        config.model = {"_target_": model}
    record = trained(tmp_path, config)
    changes = np.diff(record["sample_loss"].values, axis=0)
    first, second = (record[f"expansion_{order}"].values[:-1] for order in ("first", "second"))
    assert np.abs(changes - first - second).max() < 0.02 * np.abs(changes - first).max()
    assert np.abs(changes - first).max() < 0.1 * np.abs(changes).max()
