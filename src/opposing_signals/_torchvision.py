"""Makes torchvision importable with a build of torch that it was not compiled for.

torchvision's Linux wheel is built for CUDA. On a CPU build of torch its compiled operators do not load, and then
``import torchvision`` (and ``import lightning``, which reaches it through torchmetrics) fails with "operator
torchvision::nms does not exist", because torchvision registers shape rules for two undeclared operators. Declaring
their schemas first makes everything but those two detection operators work.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_declared: list[object] = []
"""Libraries of schemas, kept because a schema lasts only as long as its library object."""


class _TorchvisionFinder(MetaPathFinder):
    """Finds torchvision as usual, and declares the missing operators just before it is executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        specification = PathFinder.find_spec(fullname, path, target) if fullname == "torchvision" else None
        if specification is None or specification.loader is None or specification.origin is None:
            return None
        execute, folder = specification.loader.exec_module, Path(specification.origin).parent

        def declare_and_execute(module: ModuleType) -> None:
            _declare_missing(folder)
            execute(module)

        specification.loader.exec_module = declare_and_execute  # type: ignore[method-assign]
        return specification


def make_importable() -> None:
    """Make later imports of torchvision work, from any module, without importing torch or torchvision now."""
    sys.meta_path.insert(0, _TorchvisionFinder())


def _declare_missing(folder: Path) -> None:
    import torch

    for library in folder.glob("_C*"):  # _C.so, and _C_stable.so from 0.29 on
        with contextlib.suppress(OSError):
            torch.ops.load_library(str(library))
            return
    schemas = torch.library.Library("torchvision", "FRAGMENT")
    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            schemas.define(schema)
    _declared.append(schemas)
