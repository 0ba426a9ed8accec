"""The parts that a kind of node gives to a stage, and nodes that declare their layers."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from ..registry import Registry

__all__ = ['NODES', 'LayeredNode', 'NodeLayers', 'ShortcutEntry', 'StageParts', 'register_node']

#: By name, what makes the entry and the nodes of a stage: ``parts(in_chs, out_chs, num_nodes,
#: stride, dilation, norm_layer=..., device=..., dtype=...) -> StageParts``. The class of a node may
#: have ``per_block``: how many make a block of a plain network (1), for layer-wise learning rates.
NODES = Registry('node')
register_node = NODES.register


@dataclass(frozen=True)
class StageParts:
    """Modules of one stage, for :class:`timm_topo.stages.GraphStage`.

    Attributes:
        entry: Stage input -> x_0.
        nodes: The computing nodes in order.
        first_reads_input: Whether the first of them reads the stage input instead of x_0.
    """

    entry: nn.Module
    nodes: list[nn.Module]
    first_reads_input: bool = False


@dataclass(frozen=True)
class NodeLayers:
    """A node as its layers: ``norm(convs[-1](...convs[0](act(x))))``.

    Attributes:
        act: The activation.
        convs: The convolutions, in order.
        norm: The normalisation.
    """

    act: nn.Module
    convs: tuple[nn.Module, ...]
    norm: nn.Module

    def __iter__(self) -> Iterator[nn.Module]:
        return iter((self.act, *self.convs, self.norm))

    def parameters(self) -> list[Tensor]:
        """Parameters of the convolutions, then of the norm."""
        return [p for layer in (*self.convs, self.norm) for p in layer.parameters()]


class LayeredNode(nn.Module):
    """Partial contract: a node that is its layers, one after another. Implement ``layers``.

    Executors may run the layers themselves, instead of the node.
    """

    def layers(self) -> NodeLayers:
        """The layers."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C_in, H, W)`` -> ``(B, C, H', W')``."""
        for layer in self.layers():
            x = layer(x)
        return x


class ShortcutEntry(nn.Module):
    """x_0 = node(x) + shortcut(x).

    Args:
        node: A node that leaves its input as it is.
        shortcut: Beside it.
    """

    def __init__(self, node: LayeredNode, shortcut: nn.Module):
        super().__init__()
        self.node = node
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C_in, H_in, W_in)`` -> ``(B, C, H, W)``."""
        return self.node(x) + self.shortcut(x)
