"""ResNet-18 for 32x32 images."""

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
        width: Channels of the first stage; each of the three later stages doubles it. 64 is the standard ResNet-18.
        blocks: Basic blocks in each stage.
    """

    def __init__(self, channels: int, outputs: int, width: int, blocks: tuple[int, ...] = (2, 2, 2, 2)) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        stages, inplanes = [], width
        for stage, count in enumerate(blocks):
            planes = width * 2**stage
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                stages.append(BasicBlock(inplanes, planes, stride, _shortcut(inplanes, planes, stride)))
                inplanes = planes
        self.stages = nn.Sequential(*stages)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(inplanes, outputs)

    def forward(self, images: Tensor) -> Tensor:
        """``[n, channels, 32, 32]`` ↦ logits ``[n, outputs]``."""
        return self.head(self.pool(self.stages(self.stem(images))))


def _shortcut(inplanes: int, planes: int, stride: int) -> nn.Module | None:
    if stride == 1 and inplanes == planes:
        return None
    return nn.Sequential(nn.Conv2d(inplanes, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))


def resnet18(input_shape: tuple[int, ...], outputs: int, width: int = 64) -> ResNet:
    """ResNet-18 (see `ResNet`)."""
    return ResNet(input_shape[0], outputs, width)
