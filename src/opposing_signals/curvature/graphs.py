"""Autograd's graph, node by node."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor
from torch.autograd.graph import Node


def graph_nodes(tensors: Iterable[Tensor | None]) -> Iterator[Node]:
    """The nodes of the graph that computed ``tensors``, each once."""
    waiting, seen = [tensor.grad_fn for tensor in tensors if tensor is not None], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
            yield node
