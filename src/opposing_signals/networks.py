"""Display names of networks."""

_NAMES = {
    "cifar_resnet": "ResNet",
    "gpt": "GPT",
    "mlp": "MLP",
    "resnet18": "ResNet-18",
    "vgg11": "VGG-11",
    "vit": "ViT",
}
_STANDARD_WIDTHS = {"cifar_resnet": 16, "resnet18": 64, "vgg11": 64}


def network_name(function: str, depth: object = None, batch_norm: bool = False, width: int | None = None) -> str:
    """For instance "ResNet-56", "VGG-11-BN" or "ResNet-18 (width 16 of 64)".

    Args:
        function: The function that builds the network; one outside `opposing_signals.models` is its own name.
        depth: The argument of `cifar_resnet`.
        batch_norm: The argument of `vgg11`.
        width: The argument of the networks that have one; shown unless it is the standard network's. None: not shown.
    """
    name, standard = _NAMES.get(function, function), _STANDARD_WIDTHS.get(function)
    if function == "cifar_resnet":
        name += f"-{depth}"
    elif function == "vgg11" and batch_norm:
        name += "-BN"
    if function not in _NAMES or width in (None, standard):
        return name
    return f"{name} (width {width}" + (f" of {standard})" if standard else ")")
