"""VGG-11 for 32x32 images."""

import torchvision
from torch import nn

from opposing_signals.values import Count

STAGES = torchvision.models.vgg.cfgs["A"]  # 8 convolutions, 5 max-pools


def vgg11(input_shape: tuple[int, ...], outputs: int, width: Count = 64, batch_norm: bool = True) -> nn.Sequential:
    """VGG-11 with three linear layers (Simonyan and Zisserman 2014, configuration A), without dropout.

    Five max-pools leave a 32x32 image one pixel, so the first linear layer sees 8 x width features. Dropout is
    left out: full-batch gradient descent is meant to be deterministic, and the paper mentions none.

    Args:
        input_shape: (channels, 32, 32).
        outputs: Number of classes.
        width: Channels of the first convolution; 64 is the standard.
        batch_norm: Normalize after each convolution.
    """
    channels = [stage if stage == "M" else stage * width // 64 for stage in STAGES]
    features = torchvision.models.vgg.make_layers(channels, batch_norm=batch_norm)
    if input_shape[0] != 3:
        features[0] = nn.Conv2d(input_shape[0], channels[0], 3, padding=1)
    hidden = 8 * width
    model = nn.Sequential(
        features,
        nn.Flatten(),
        nn.Linear(hidden, hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, outputs),
    )
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    return model
