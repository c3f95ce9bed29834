"""The data sets of the experiments, each a function that returns a `Dataset`."""

from opposing_signals.data.augmentation import CropFlip
from opposing_signals.data.chebyshev import chebyshev
from opposing_signals.data.cifar10 import cifar10
from opposing_signals.data.dataset import Dataset
from opposing_signals.data.planted import planted
from opposing_signals.data.recorded import recorded
from opposing_signals.data.text import openwebtext, text_demo
from opposing_signals.data.text_stream import text_stream
from opposing_signals.data.tracked import tracked

__all__ = [
    "CropFlip",
    "Dataset",
    "chebyshev",
    "cifar10",
    "openwebtext",
    "planted",
    "recorded",
    "text_demo",
    "text_stream",
    "tracked",
]
