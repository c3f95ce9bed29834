"""The architectures of the paper's experiments, built from torchvision's parts where it has them."""

from opposing_signals.models.gpt import gpt
from opposing_signals.models.mlp import mlp
from opposing_signals.models.resnet import cifar_resnet, resnet18
from opposing_signals.models.vgg import vgg11
from opposing_signals.models.vit import vit

__all__ = ["cifar_resnet", "gpt", "mlp", "resnet18", "vgg11", "vit"]
