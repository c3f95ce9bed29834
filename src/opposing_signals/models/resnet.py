"""Residual networks for 32x32 images: ResNet-18, and ResNet-20 to ResNet-110."""

import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from opposing_signals.errors import InputError
from opposing_signals.values import Count

BasicBlock = torchvision.models.resnet.BasicBlock


class ResNet(nn.Module):
    """Residual network of basic blocks with the CIFAR stem: 3x3 convolution, stride 1, no max-pool.

    He et al. 2016. The paper names ResNet-18 and leaves stem and initialization open; this is the common choice for
    32x32 images, with torch's default initialization. Before batch norm, the scale of the initial weights sets the
    effective step size: torchvision's larger weights train several times slower at the same η.

    Args:
        channels: Of the input.
        outputs: Number of classes.
        width: Channels of the first stage; each later stage doubles it. 64 is the standard ResNet-18, 16 the standard
            ResNet-20 to ResNet-110.
        blocks: Basic blocks in each stage.
        projection: Whether the shortcut into a stage is a strided 1x1 convolution with batch norm (option B of He et
            al.), or has no parameters (option A).
    """

    def __init__(
        self, channels: int, outputs: int, width: Count, blocks: tuple[int, ...] = (2, 2, 2, 2), projection: bool = True
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        stages, inplanes = [], width
        for stage, count in enumerate(blocks):
            planes = width * 2**stage
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                shortcut = None
                if stride > 1 or inplanes != planes:
                    shortcut = (
                        _projection(inplanes, planes, stride) if projection else PaddedShortcut(planes - inplanes)
                    )
                stages.append(BasicBlock(inplanes, planes, stride, shortcut))
                inplanes = planes
        self.stages = nn.Sequential(*stages)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(inplanes, outputs)

    def forward(self, images: Tensor) -> Tensor:
        """``[n, channels, 32, 32]`` ↦ logits ``[n, outputs]``."""
        return self.head(self.pool(self.stages(self.stem(images))))


class PaddedShortcut(nn.Module):
    """Every second pixel in each direction, with ``added`` channels of zeros after the others."""

    def __init__(self, added: int) -> None:
        super().__init__()
        self.added = added

    def forward(self, images: Tensor) -> Tensor:
        """``[n, c, h, w]`` ↦ ``[n, c + added, h/2, w/2]``."""
        return F.pad(images[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.added))


def _projection(inplanes: int, planes: int, stride: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inplanes, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))


def resnet18(input_shape: tuple[int, ...], outputs: int, width: Count = 64) -> ResNet:
    """ResNet-18 (see `ResNet`)."""
    return ResNet(input_shape[0], outputs, width)


def cifar_resnet(input_shape: tuple[int, ...], outputs: int, depth: Count, width: Count = 16) -> ResNet:
    """The networks of He et al. 2016, section 4.2: three stages, with the shortcuts of option A, as there.

    Raises:
        InputError: No such network has ``depth`` layers: stem, 6 for each block of a stage, head.
    """
    blocks, rest = divmod(depth - 2, 6)
    if blocks < 1 or rest:
        raise InputError(f"model.depth={depth}: expected 2 more than a multiple of 6, as 20, 56 or 110")
    return ResNet(input_shape[0], outputs, width, (blocks,) * 3, projection=False)
