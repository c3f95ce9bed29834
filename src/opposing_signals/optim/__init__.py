"""Update rules that torch does not have, as torch optimizers."""

from opposing_signals.optim.clipped_sgd import ClippedSGD
from opposing_signals.optim.gradient_flow import GradientFlow
from opposing_signals.optim.sam import SAM, OneSAM
from opposing_signals.optim.sign_sgd import SignSGD
from opposing_signals.optim.split_sgd import SplitSGD

__all__ = ["SAM", "ClippedSGD", "GradientFlow", "OneSAM", "SignSGD", "SplitSGD"]
