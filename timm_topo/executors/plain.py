"""Whether nodes are the layers that executors can run themselves."""

from collections.abc import Sequence

from torch import nn

from ..nodes import LayeredNode, NodeLayers
from ..watched import watched, watched_any

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
    if why := watched_any(()):
        return why
    for number, node in enumerate(nodes, start=1):
        if not is_layered(node):
            return f'node {number} is a {type(node).__name__}, which declares no layers'
        layers = node.layers()
        why = (
            next(filter(None, map(watched, (node, *layers))), '')
            or _layers_objection(layers)
            or _norm_objection(layers.norm, training)
        )
        if why:
            return f'node {number}: {why}'
        if not (resizes and number == 1) and not _keeps_shape(layers.convs):
            return f'node {number} changes the shape of its map'
    return ''


def conv_objection(conv: nn.Module) -> str:
    """Why ``conv`` is no convolution of maps by its weight alone."""
    if type(conv) is not nn.Conv2d:
        return f'a {type(conv).__name__} in place of a Conv2d'
    if conv.bias is not None or conv.padding_mode != 'zeros' or isinstance(conv.padding, str):
        return 'a Conv2d with a bias or another padding than zeros'
    return ''


def _layers_objection(layers: NodeLayers) -> str:
    if type(layers.act) is not nn.ReLU:
        return f'a {type(layers.act).__name__} in place of a ReLU'
    return next(filter(None, map(conv_objection, layers.convs)), '')


def _norm_objection(norm: nn.Module, training: bool) -> str:
    if type(norm) is not nn.BatchNorm2d:
        return f'a {type(norm).__name__} in place of a BatchNorm2d'
    if norm.training != training:
        return f'a norm is in {"evaluation" if training else "training"} mode'
    if not norm.affine or norm.momentum is None or norm.num_batches_tracked is None:
        return 'a batch norm without parameters, momentum or count of batches'
    if not training and norm.running_mean is None:
        return 'a batch norm without statistics'
    return ''


def _keeps_shape(convs: Sequence[nn.Conv2d]) -> bool:
    for conv in convs:
        pads = zip(conv.padding, conv.dilation, conv.kernel_size)
        if conv.stride != (1, 1) or any(2 * p != d * (k - 1) for p, d, k in pads):
            return False
    return convs[0].in_channels == convs[-1].out_channels
