"""Which layer a node belongs to, for layer-wise learning rates (timm's group matchers)."""

from collections.abc import Sequence

from torch import nn

from ..wiring import Wiring

__all__ = ['blocks_of', 'layer_groups']


def layer_groups(wiring: Wiring, nodes: Sequence[int], most: int) -> list[int]:
    """The layer of each of ``nodes``, from 0: its level, the longest path from the input.

    A graph is as deep as its levels, not as its nodes are many. Where levels are more than
    ``most``, neighbours share a layer: a complete graph would freeze what comes before it.

    Args:
        wiring: The wiring, without dead nodes.
        nodes: Nodes from 1 on, in order.
        most: Layers that there may be; at least 1 is used.

    >>> layer_groups(Wiring(5, ((0, 1), (0, 2), (1, 3), (2, 3), (3, 4))), (1, 2, 3), 9)
    [0, 0, 1]
    >>> layer_groups(Wiring(6, tuple((i, i + 1) for i in range(5))), (1, 2, 3, 4), 2)
    [0, 0, 1, 1]
    """
    level = [0] * wiring.num_nodes
    for source, target in wiring.edges:  # sorted by target
        level[target] = max(level[target], level[source] + 1)
    depth = max((level[node] for node in nodes), default=1)
    layers = max(1, min(depth, most))
    return [(level[node] - 1) * layers // depth for node in nodes]


def blocks_of(nodes: Sequence[nn.Module]) -> int:
    """How many blocks a plain network makes of such nodes: its layers, which are timm's groups."""
    return len(nodes) // getattr(nodes[0], 'per_block', 1) if len(nodes) else 0
