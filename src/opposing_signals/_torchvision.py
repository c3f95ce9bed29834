"""The gate through which this package imports torchvision.

torchvision's Linux wheel is built for CUDA. On a CPU build of torch its compiled operators do not load, and then
``import torchvision`` (and ``import lightning``, which reaches it through torchmetrics) fails with "operator
torchvision::nms does not exist", because torchvision registers shape rules for two operators that nobody declared.
Declaring their schemas first makes everything but those two detection operators work.
"""

import contextlib
import importlib.util
from pathlib import Path

import torch


def _compiled_operators_load() -> bool:
    specification = importlib.util.find_spec("torchvision")
    if specification is None or specification.origin is None:
        return True
    for library in Path(specification.origin).parent.glob("_C.*"):
        with contextlib.suppress(OSError):
            torch.ops.load_library(str(library))
            return True
    return False


if not _compiled_operators_load():
    _schemas = torch.library.Library("torchvision", "DEF")
    _schemas.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _schemas.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import torchvision  # noqa: E402

__all__ = ["torchvision"]
