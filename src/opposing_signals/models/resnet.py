"""Residual networks for 32x32 images: ResNet-18, ResNet-56 and ResNet-110."""

import torch.nn.functional as F
from torch import Tensor, nn

from opposing_signals._torchvision import torchvision

BasicBlock = torchvision.models.resnet.BasicBlock


class ResNet(nn.Module):
    """Residual network of basic blocks with the CIFAR stem: 3x3 convolution, stride 1, no max-pool.

    He et al. 2016. The paper names ResNet-18 and leaves stem and initialization open; this is the common choice for
    32x32 images, with torch's default initialization. In front of batch norm the scale of the initial weights sets
    the effective step size: torchvision's larger weights train several times slower at the same η.

    Args:
        channels: Of the input.
        outputs: Number of classes.
        width: Channels of the first stage; each later stage doubles it. 64 is the standard ResNet-18, 16 the standard
            ResNet-56 and ResNet-110.
        blocks: Basic blocks in each stage.
        projection: Whether the shortcut into a stage is a strided 1x1 convolution with batch norm (option B of He et
            al.), or has no parameters (option A).
    """

    def __init__(
        self, channels: int, outputs: int, width: int, blocks: tuple[int, ...] = (2, 2, 2, 2), projection: bool = True
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
    """Every second pixel in each direction, with ``added`` channels of zeros behind the others."""

    def __init__(self, added: int) -> None:
        super().__init__()
        self.added = added

    def forward(self, images: Tensor) -> Tensor:
        """``[n, c, h, w]`` ↦ ``[n, c + added, h/2, w/2]``."""
        return F.pad(images[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.added))


def _projection(inplanes: int, planes: int, stride: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inplanes, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))


def resnet18(input_shape: tuple[int, ...], outputs: int, width: int = 64) -> ResNet:
    """ResNet-18 (see `ResNet`)."""
    return ResNet(input_shape[0], outputs, width)


def resnet56(input_shape: tuple[int, ...], outputs: int, width: int = 16) -> ResNet:
    """ResNet-56 of He et al. 2016, section 4.2: three stages, with the shortcuts of option A, as they have there."""
    return ResNet(input_shape[0], outputs, width, (9, 9, 9), projection=False)


def resnet110(input_shape: tuple[int, ...], outputs: int, width: int = 16) -> ResNet:
    """ResNet-110; as `resnet56`, twice as deep."""
    return ResNet(input_shape[0], outputs, width, (18, 18, 18), projection=False)
