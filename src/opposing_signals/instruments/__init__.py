"""Lightning callbacks that measure θ_t before the step and write what they see into the run's record."""

from opposing_signals.instruments.instrument import Instrument
from opposing_signals.instruments.outputs import Outputs
from opposing_signals.instruments.sample_losses import SampleLosses
from opposing_signals.instruments.sharpness import Sharpness
from opposing_signals.instruments.train_loss import TrainLoss

__all__ = ["Instrument", "Outputs", "SampleLosses", "Sharpness", "TrainLoss"]
