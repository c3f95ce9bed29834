"""Lightning callbacks that measure θ_t before the step and write what they see into the run's record."""

from opposing_signals.instruments.batch_sharpness import BatchSharpness
from opposing_signals.instruments.block_probe import BlockProbe
from opposing_signals.instruments.break_even import BreakEven
from opposing_signals.instruments.gauss_newton import GaussNewton
from opposing_signals.instruments.gradient_norms import GradientNorms
from opposing_signals.instruments.gradient_sketch import GradientSketch
from opposing_signals.instruments.instrument import Instrument
from opposing_signals.instruments.integration import Integration
from opposing_signals.instruments.jacobian import Jacobian
from opposing_signals.instruments.outputs import Outputs
from opposing_signals.instruments.preconditioned_sharpness import PreconditionedSharpness
from opposing_signals.instruments.predictions import Predictions
from opposing_signals.instruments.projection import EffectiveStepSize, FloorDistance, Projection
from opposing_signals.instruments.sample_curvature import SampleCurvature
from opposing_signals.instruments.sample_losses import SampleLosses
from opposing_signals.instruments.sample_sharpness import SampleSharpness
from opposing_signals.instruments.sharpness import Sharpness
from opposing_signals.instruments.signed_share import SignedShare
from opposing_signals.instruments.snapshots import Snapshots
from opposing_signals.instruments.spectral_density import SpectralDensity
from opposing_signals.instruments.test_accuracy import TestAccuracy
from opposing_signals.instruments.token_losses import TokenLosses
from opposing_signals.instruments.train_loss import TrainLoss

__all__ = [
    "BatchSharpness",
    "BlockProbe",
    "BreakEven",
    "EffectiveStepSize",
    "FloorDistance",
    "GaussNewton",
    "GradientNorms",
    "GradientSketch",
    "Instrument",
    "Integration",
    "Jacobian",
    "Outputs",
    "PreconditionedSharpness",
    "Predictions",
    "Projection",
    "SampleCurvature",
    "SampleLosses",
    "SampleSharpness",
    "Sharpness",
    "SignedShare",
    "Snapshots",
    "SpectralDensity",
    "TestAccuracy",
    "TokenLosses",
    "TrainLoss",
]
