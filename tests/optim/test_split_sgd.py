import copy
import math
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opposing_signals.errors import TrainingStoppedError
from opposing_signals.optim import SignSGD, SplitSGD


def split_sgd(parameters, **settings) -> SplitSGD:
    return SplitSGD(parameters, **{"lr": 0.001, "sgd_lr": 0.1, **settings})


PATHS = {
    "one by one": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}
SHAPES = [(3, 4), (5,), (), (2, 3, 2, 2)]
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
EVERY_PATH = [pytest.param(name, marks=needs_compiler if name == "fused" else ()) for name in PATHS]


def drawn(steps: int, seed: int = 0) -> tuple[list[torch.nn.Parameter], list[list[torch.Tensor]]]:
    """Parameters, and their gradients at each step."""
    generator = torch.Generator().manual_seed(seed)
    values = [
        [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES] for _ in range(steps + 1)
    ]
    return [torch.nn.Parameter(value) for value in values[0]], values[1:]


def take(optimizer: torch.optim.Optimizer, parameters, gradients) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone() if gradient is not None else None
    optimizer.step()


def flat(tensors) -> np.ndarray:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors]).double().numpy()


def algorithm_1(theta, gradients, eta1, eta2, beta, tau, r=None, quantile=0.1):
    """θ_T and the fraction of signed steps at each t, number by number as in the paper."""
    theta, m, shares = [float(x) for x in theta], [0.0] * len(theta), []
    if r is None:
        r = float(np.quantile(np.abs(gradients[0]), quantile))
    for t, g in enumerate(gradients, start=1):
        signed = 0
        for i in range(len(theta)):
            m[i] = beta * m[i] + (1 - tau) * float(g[i])
            debiased = m[i] / (1 - tau**t)
            if abs(debiased) <= r:
                theta[i] -= eta1 * debiased
            else:
                theta[i] -= eta2 * math.copysign(1, debiased)
                signed += 1
        shares.append(signed / len(theta))
    return np.array(theta), shares


@pytest.mark.parametrize("path", EVERY_PATH)
@pytest.mark.parametrize(("eta1", "tau", "threshold"), [(0.1, 0.9, 0.5), (0.0, 0.0, None), (1e3, 0.8, 1e-4)])
def test_every_path_is_algorithm_1(path, eta1, tau, threshold):
    parameters, gradients = drawn(steps=6)
    rows = [flat(step) for step in gradients]
    expected, shares = algorithm_1(flat(parameters), rows, eta1, 0.02, 0.9, tau, threshold, quantile=0.3)
    rule = {"sgd_lr": eta1, "dampening": tau, "threshold": threshold, "quantile": 0.3}
    optimizer = split_sgd(parameters, lr=0.02, **rule, **PATHS[path])
    assert math.isnan(float(optimizer.signed_share))
    for step, share in zip(gradients, shares, strict=True):
        take(optimizer, parameters, step)
        assert float(optimizer.signed_share) == pytest.approx(share)
    np.testing.assert_allclose(flat(parameters), expected, rtol=1e-12, atol=1e-13)
    assert min(shares) > 0


@settings(deadline=None, max_examples=40)
@given(
    eta1=st.one_of(st.just(0.0), st.floats(1e-4, 1e3)),
    eta2=st.floats(0, 1),
    beta=st.floats(0, 0.99),
    tau=st.floats(0, 0.99),
    r=st.one_of(st.just(0.0), st.floats(1e-6, 1e6)),
    seed=st.integers(0, 100),
)
def test_foreach_is_algorithm_1_for_any_numbers(eta1, eta2, beta, tau, r, seed):
    parameters, gradients = drawn(4, seed)
    expected, _ = algorithm_1(flat(parameters), [flat(step) for step in gradients], eta1, eta2, beta, tau, r)
    optimizer = split_sgd(parameters, lr=eta2, sgd_lr=eta1, momentum=beta, dampening=tau, threshold=r)
    for step in gradients:
        take(optimizer, parameters, step)
    np.testing.assert_allclose(flat(parameters), expected, rtol=1e-9, atol=1e-11)


def stepped_from_0(path, gradient, dtype=torch.float64, **numbers) -> tuple[SplitSGD, torch.Tensor]:
    """One step of an entry for each of some gradients; the other parameters have negligible gradients."""
    parameters = [torch.nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in SHAPES]
    optimizer = split_sgd(parameters, **numbers, **PATHS[path])
    gradients = [torch.zeros(shape, dtype=dtype) for shape in SHAPES]
    gradients[0].view(-1)[: len(gradient)] = torch.tensor(gradient, dtype=dtype)
    take(optimizer, parameters, gradients)
    assert not flat(parameters)[len(gradient) :].any()
    return optimizer, parameters[0].detach().view(-1)[: len(gradient)]


# each type would need its own compilation, which takes seconds
EVERY_TYPE = [
    *((path, dtype) for path in ("one by one", "foreach") for dtype in (torch.float64, torch.float32, torch.bfloat16)),
    pytest.param("fused", torch.float64, marks=needs_compiler),
]


@pytest.mark.parametrize(("path", "dtype"), EVERY_TYPE)
def test_the_threshold_itself_is_below_the_threshold(path, dtype):
    """|m̂| = r takes the plain step."""
    threshold = float(torch.tensor(0.3, dtype=dtype))
    numbers = {"lr": 2, "sgd_lr": 1, "dampening": 0, "threshold": threshold}
    optimizer, theta = stepped_from_0(path, [0.3, -0.3, 0.31], dtype, **numbers)
    torch.testing.assert_close(theta, torch.tensor([-threshold, threshold, -2], dtype=dtype))
    assert float(optimizer.signed_share) == pytest.approx(1 / 42)


def test_tensors_are_cut_into_blocks_whatever_their_layout(monkeypatch):
    monkeypatch.setattr("opposing_signals.optim.split_sgd._GRAIN", 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)

    def trained(path):
        torch.manual_seed(0)
        shapes = [(5, 7), (3,), (2, 3, 4, 4), (8,), (1,)]
        parameters = [torch.nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in shapes]
        parameters[2].data = parameters[2].data.to(memory_format=torch.channels_last)
        optimizer = split_sgd(parameters, **PATHS[path])
        for _ in range(3):
            gradients = [torch.randn_like(parameter) for parameter in parameters]
            gradients[0] = torch.randn(7, 5, dtype=torch.float64).T  # a layout unlike the parameter's
            take(optimizer, parameters, gradients)
        return parameters

    for one, other in zip(trained("foreach"), trained("one by one"), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("path", EVERY_PATH)
def test_an_infinite_gradient_takes_a_signed_step_and_a_nan_shows(path):
    _, theta = stepped_from_0(path, [math.inf, -math.inf, math.nan, 0.0], lr=0.5, threshold=1e-3)
    np.testing.assert_array_equal(theta, [-0.5, 0.5, math.nan, 0])


def test_the_threshold_leaves_the_quantile_of_the_first_gradient_to_plain_steps():
    generator = torch.Generator().manual_seed(3)
    parameters = [torch.nn.Parameter(torch.zeros(n)) for n in (700, 301)]
    optimizer = split_sgd([{"params": parameters[:1]}, {"params": parameters[1:], "lr": 0.1}], quantile=0.25)
    for _ in range(2):
        take(optimizer, parameters, [torch.randn(p.shape, generator=generator) for p in parameters])
        first = [group["threshold"] for group in optimizer.param_groups]
        if _ == 0:
            thresholds, share = first, float(optimizer.signed_share)
    assert share == pytest.approx(0.75, abs=1.5e-3)
    assert thresholds == first
    assert thresholds[0] == thresholds[1]


def test_groups_have_their_own_numbers():
    parameters, gradients = drawn(3)
    together = split_sgd(
        [{"params": parameters[:2], "lr": 0.5, "sgd_lr": 0.3}, {"params": parameters[2:], "momentum": 0.0}],
        threshold=0.4,
    )
    for step in gradients:
        take(together, parameters, step)
    fresh, _ = drawn(3)
    rows = [flat(step[:2]) for step in gradients], [flat(step[2:]) for step in gradients]
    first, _ = algorithm_1(flat(fresh[:2]), rows[0], 0.3, 0.5, 0.9, 0.9, 0.4)
    second, _ = algorithm_1(flat(fresh[2:]), rows[1], 0.1, 0.001, 0.0, 0.9, 0.4)
    np.testing.assert_allclose(flat(parameters), np.concatenate([first, second]), rtol=1e-12, atol=1e-14)


def test_a_parameter_without_gradient_rests_and_its_steps_do_not_count():
    parameters, gradients = drawn(4)
    optimizer = split_sgd(parameters, threshold=0.4)
    for t, step in enumerate(gradients):
        take(optimizer, parameters, [*step[:3], step[3] if t >= 2 else None])
    fresh, _ = drawn(4)
    for which, steps in ((slice(0, 3), gradients), (slice(3, 4), gradients[2:])):
        expected, _ = algorithm_1(flat(fresh[which]), [flat(step[which]) for step in steps], 0.1, 0.001, 0.9, 0.9, 0.4)
        np.testing.assert_allclose(flat(parameters[which]), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("path", EVERY_PATH)
def test_a_resumed_run_ends_with_the_same_bits(path, tmp_path):
    parameters, gradients = drawn(6)
    whole = split_sgd(parameters, **PATHS[path])
    for t, step in enumerate(gradients):
        if t == 3:
            state = {"theta": [p.detach().clone() for p in parameters], "rule": copy.deepcopy(whole.state_dict())}
            torch.save(state, tmp_path / "state")
        take(whole, parameters, step)
    state = torch.load(tmp_path / "state", weights_only=True)
    resumed = [torch.nn.Parameter(theta) for theta in state["theta"]]
    optimizer = split_sgd(resumed, **PATHS[path])
    optimizer.load_state_dict(state["rule"])
    assert optimizer.param_groups[0]["threshold"] == whole.param_groups[0]["threshold"]
    for step in gradients[3:]:
        take(optimizer, resumed, step)
    np.testing.assert_array_equal(flat(resumed), flat(parameters))
    assert float(optimizer.signed_share) == float(whole.signed_share)


@needs_compiler
def test_a_schedule_does_not_compile_again():
    parameters, gradients = drawn(5)
    optimizer = split_sgd(parameters, threshold=0.5, fused=True)
    take(optimizer, parameters, gradients[0])
    with torch.compiler.set_stance("fail_on_recompile"):
        for t, step in enumerate(gradients[1:]):
            optimizer.param_groups[0]["lr"] = 0.1 / (t + 1)
            take(optimizer, parameters, step)


def test_with_threshold_0_it_is_sign_sgd():
    ours, gradients = drawn(5)
    theirs, _ = drawn(5)
    split, sign = split_sgd(ours, lr=0.25, threshold=0), SignSGD(theirs, lr=0.25, momentum=0.9)
    for step in gradients:
        take(split, ours, step)
        take(sign, theirs, step)
    np.testing.assert_array_equal(flat(ours), flat(theirs))


def test_torchs_dampening_is_another_rule():
    """torch's SGD begins undampened and does not debias; with r = ∞ the two agree at the first step only."""
    ours, gradients = drawn(3)
    theirs, _ = drawn(3)
    split = split_sgd(ours, sgd_lr=0.1, threshold=1e300)
    sgd = torch.optim.SGD(theirs, lr=0.1, momentum=0.9, dampening=0.9)
    for t, step in enumerate(gradients):
        take(split, ours, step)
        take(sgd, theirs, step)
        assert np.allclose(flat(ours), flat(theirs), rtol=1e-12) == (t == 0)


def test_the_closure_is_called_once_with_gradients():
    parameter = torch.nn.Parameter(torch.tensor([3.0]))
    optimizer = split_sgd([parameter], lr=0.5, threshold=0.1)
    calls = []

    def closure():
        optimizer.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        calls.append(loss.item())
        return loss.item()

    assert optimizer.step(closure) == 9.0
    assert calls == [9.0]
    assert parameter.item() == 2.5
    assert split_sgd([parameter], threshold=0.1).step() is None


def test_a_first_gradient_that_gives_no_threshold_is_refused():
    parameter = torch.nn.Parameter(torch.zeros(4))
    with pytest.raises(TrainingStoppedError, match="first gradient"):
        take(split_sgd([parameter]), [parameter], [torch.full((4,), math.nan)])
    assert torch.equal(parameter, torch.zeros(4))


def test_both_step_sizes_are_named():
    parameters = [torch.nn.Parameter(torch.zeros(2))]
    with pytest.raises(TypeError, match="positional"):
        SplitSGD(parameters, 0.1, 0.001)
    for one in ({"lr": 0.001}, {"sgd_lr": 0.1}):
        with pytest.raises(TypeError, match="keyword-only argument"):
            SplitSGD(parameters, **one)
