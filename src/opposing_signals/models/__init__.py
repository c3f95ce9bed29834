"""The architectures of the paper's experiments; torchvision's parts where it has them."""

from opposing_signals.models.mlp import mlp
from opposing_signals.models.resnet import resnet18
from opposing_signals.models.vgg import vgg11
from opposing_signals.models.vit import vit

__all__ = ["mlp", "resnet18", "vgg11", "vit"]
