"""Names of networks in print."""

_NAMES = {
    "cifar_resnet": "ResNet",
    "gpt": "GPT",
    "mlp": "MLP",
    "resnet18": "ResNet-18",
    "vgg11": "VGG-11",
    "vit": "ViT",
}


def network_name(function: str, depth: object = None, batch_norm: bool = False) -> str:
    """For instance "ResNet-56" or "VGG-11-BN".

    Args:
        function: The one that builds the network; one that is not of `opposing_signals.models` stands for itself.
        depth: The argument of `cifar_resnet`.
        batch_norm: The argument of `vgg11`.
    """
    if function == "cifar_resnet":
        return f"{_NAMES[function]}-{depth}"
    return _NAMES.get(function, function) + ("-BN" if function == "vgg11" and batch_norm else "")
