"""Whether nodes are the layers that executors can run themselves."""

from collections.abc import Sequence

from torch import nn

from ..nodes import LayeredNode, NodeLayers
from ..watched import watched_any

__all__ = ['conv_objection', 'is_layered', 'layers_objection']


def is_layered(node: nn.Module | None) -> bool:
    """Whether a node is its layers, one after another."""
    return isinstance(node, LayeredNode) and type(node).forward is LayeredNode.forward


def layers_objection(nodes: Sequence[nn.Module], resizes: bool, training: bool) -> str:
    """Why nodes cannot be run layer by layer, in maps of one shape.

    Args:
        nodes: Computing nodes.
        resizes: Whether the first of them may change the shape.
        training: The mode that all must be in.
    """
    for number, node in enumerate(nodes, start=1):
        kind = type(node).__name__
        if not is_layered(node):
            return f'node {number} is a {kind}, which declares no layers'
        layers = node.layers()
        why = watched_any((node, *layers)) or _chain_objection(layers)
        if not why and {node.training, layers.norm.training} != {training}:
            why = f'a norm is in {"evaluation" if training else "training"} mode'
        if not why and not (resizes and number == 1) and not _keeps_shape(layers.convs):
            why = f'a {kind} changes the shape of its map'
        if why:
            return f'node {number}: {why}'
    return ''


def conv_objection(conv: nn.Module) -> str:
    """Why ``conv`` is no convolution of maps by its weight alone."""
    kind = type(conv).__name__
    if type(conv) is not nn.Conv2d:
        return f'a {kind} in place of a Conv2d'
    if conv.bias is not None or conv.padding_mode != 'zeros' or isinstance(conv.padding, str):
        return 'a Conv2d with a bias or another padding than zeros'
    return ''


def _chain_objection(layers: NodeLayers) -> str:
    if type(layers.act) is not nn.ReLU:
        return f'a {type(layers.act).__name__} in place of a ReLU'
    norm, kind = layers.norm, type(layers.norm).__name__
    if type(norm) is not nn.BatchNorm2d:
        return f'a {kind} in place of a BatchNorm2d'
    if not norm.affine or norm.momentum is None or norm.num_batches_tracked is None:
        return 'a batch norm without parameters, momentum or count of batches'
    if not norm.training and norm.running_mean is None:
        return 'a batch norm without statistics'
    return next(filter(None, map(conv_objection, layers.convs)), '')


def _keeps_shape(convs: Sequence[nn.Conv2d]) -> bool:
    sizes = (
        stride == 1 and 2 * padding == dilation * (kernel - 1)
        for conv in convs
        for stride, padding, dilation, kernel in zip(
            conv.stride, conv.padding, conv.dilation, conv.kernel_size
        )
    )
    return all(sizes) and convs[0].in_channels == convs[-1].out_channels
