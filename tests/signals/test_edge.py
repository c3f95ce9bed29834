import pytest

from opposing_signals.record import Record
from opposing_signals.signals import Trajectory, edge_of_stability


@pytest.fixture
def recorded(tmp_path):
    def make(name, configuration, rates=()):
        with Record.writing(tmp_path / name, configuration) as record:
            for step, value in enumerate((10.0, 20.0, 30.0)):
                record.append("sharpness", step, value)
            for step, rate in enumerate(rates):
                record.append("learning_rate", step, rate)
        return Record(tmp_path / name)

    return make


@pytest.mark.parametrize(
    ("optimizer", "edge"),
    [
        ({"_target_": "torch.optim.SGD"}, 20),
        ({}, 20),
        ({"_target_": "torch.optim.SGD", "momentum": 0.0, "weight_decay": 0}, 20),
        ({"_target_": "torch.optim.SGD", "momentum": 0.9}, None),
        ({"_target_": "torch.optim.SGD", "weight_decay": 0.01}, None),
        ({"_target_": "torch.optim.Adam"}, None),
        ({"_target_": "opposing_signals.optim.SplitSGD"}, None),
        ({"_target_": "opposing_signals.optim.SAM"}, None),
    ],
)
def test_two_over_the_step_size_is_the_edge_of_plain_gradient_descent_alone(recorded, optimizer, edge):
    record = recorded("run", {"optimizer": {"lr": 0.1, **optimizer}})
    assert edge_of_stability(record) == edge
    trajectory = Trajectory(record)
    assert trajectory.break_even == (None if edge is None else 1)  # at λ = 2/η the offset no longer shrinks
    if edge is None:
        assert "no edge of stability" in trajectory.no_break_even


def test_a_step_size_that_changes_has_no_edge(recorded):
    plain = {"optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1}}
    assert edge_of_stability(recorded("constant", plain, [0.1, 0.1])) == 20
    assert edge_of_stability(recorded("scheduled", plain, [0.1, 0.05])) is None
    assert edge_of_stability(recorded("clipped", {**plain, "before_update": {"_target_": "clip"}})) is None


@pytest.mark.parametrize("optimizer", [None, "SGD", {"lr": "0.1"}, {"lr": 0}, {"_target_": "torch.optim.SGD"}])
def test_a_configuration_that_names_no_step_size_has_no_edge(recorded, optimizer):
    assert edge_of_stability(recorded("odd", {"optimizer": optimizer})) is None
