"""TF32 emulated on a CPU."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class RoundedFactors(TorchDispatchMode):
    """Rounds the factors of products to TF32's ten mantissa bits, as a GPU does."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        first = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}.get(function.overloadpacket.__name__, len(args))
        return function(*args[:first], *map(self.rounded, args[first:]), **(kwargs or {}))

    @staticmethod
    def rounded(factor):
        bits = factor.contiguous().view(torch.int32)
        return ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)
