"""Stages of layered nodes in one table of maps: inference, and what training needs of it.

The maps of all nodes lie one after another; a sum reads each of its inputs once, and batch norm
writes to the table.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from ..nodes import NodeLayers
from ..stages import Executor, GraphStage, Stage, register
from ..watched import watched_any
from . import workspace
from .conv_bn import convolve, norm_into
from .kernels import kernels_apply, make_table
from .layout import in_best_layout, is_channels_last
from .plain import layers_objection
from .schedule import Group, schedule
from .self_check import agrees_on
from .sums import in_edge_weights, reads
from .table import Table

__all__ = ['autocast_dtype', 'fill', 'table_objection']


class TableForward(Executor):
    """Inference in one table, in memory that is kept for the next pass."""

    name = 'table'
    rank = 30

    def objection(self, stage: Stage, x: Tensor) -> str:
        return 'a gradient is wanted' if torch.is_grad_enabled() else table_objection(stage, x)

    def run(self, stage: GraphStage, x: Tensor) -> Tensor:
        workspace.clear()
        return in_best_layout(x, lambda x: _forward(stage, x))


def _forward(stage: GraphStage, x: Tensor) -> Tensor:
    x_0 = stage.entry(x)
    x_0 = x_0.to(autocast_dtype(x) or x_0.dtype)
    weights, layers = stage.connectivity.pass_weights(), [node.layers() for node in stage.nodes]
    groups = schedule(stage.wiring, 1, 1)
    with workspace.inference_memory(x_0, (stage.wiring.num_nodes - 1, x_0.numel())) as flat:
        table = make_table(flat, x_0.shape, is_channels_last(x_0))
        return fill(table, stage, layers, weights, x, x_0, groups)[0]


def fill(
    table: Table,
    stage: GraphStage,
    layers: Sequence[NodeLayers],
    weights: Tensor,
    x: Tensor,
    x_0: Tensor,
    groups: Sequence[Group],
) -> tuple[Tensor, list[Tensor]]:
    """Compute the maps of all nodes, in the table.

    Args:
        table: Place for the maps of the nodes 0 .. N - 2.
        stage: A stage.
        layers: Of its nodes.
        weights: ``(E,)``.
        x: Stage input.
        x_0: What the entry made of it.
        groups: The schedule of the sums; of a node that reads the stage input, without it.

    Returns:
        The stage output; and by node the statistics of its batch norm, see :func:`norm_into`.
    """
    wiring, statistics = stage.wiring, []
    table[0].copy_(x_0)
    if stage.first_reads_input:
        groups = [group for group in groups if group.nodes[0] > 1]
        inputs = [(x * in_edge_weights(wiring, weights, 1)).to(x_0.dtype).relu_()]
    else:
        inputs = []
    inputs = itertools.chain(inputs, reads(table, wiring, weights, groups))
    for node, (y, own) in enumerate(zip(inputs, layers), start=1):
        for conv in own.convs:
            y = convolve(y, conv, conv.weight)
        statistics.append(norm_into(table[node], table.in_layout(y), own.norm))
    last = wiring.num_nodes - 1
    return table.sum(wiring.preds(last), in_edge_weights(wiring, weights, last)), statistics


def table_objection(stage: Stage, x: Tensor) -> str:
    """Why ``stage`` cannot run on ``x`` in one table of maps; '' if it can."""
    if type(stage) is not GraphStage:
        return f'a {type(stage).__name__} has maps of several shapes, or an equation of its own'
    return (
        _graph_objection(stage)
        or layers_objection(stage.nodes, stage.first_reads_input, stage.training)
        or _input_objection(x)
    )


def _graph_objection(stage: GraphStage) -> str:
    if stage.needs_context:
        return 'edge weights depend on the image'
    if stage.has_offsets:
        return 'constants are added to sums'
    if stage.entry_is_unread:
        return 'no node reads x_0'
    return watched_any((stage.connectivity,))


def _input_objection(x: Tensor) -> str:
    half, kernels, training = autocast_dtype(x), kernels_apply(x), torch.is_grad_enabled()
    if not x.numel():
        return 'the batch is empty'
    if (half or x.device.type != 'cpu') and not kernels:
        return 'autocast, or a device other than the CPU, without Triton kernels'
    exact = x.dtype in (torch.float32, torch.float64, half)
    if not exact and (training or not kernels):
        return f'maps are {x.dtype}'
    if kernels and not agrees_on(x.device, half or x.dtype, is_channels_last(x), bool(half)):
        return 'tables did not agree with the equation on this device'
    return ''


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The type to which autocast, if it is on, casts the maps of a stage."""
    kind = x.device.type
    applies = torch.is_autocast_enabled(kind) and x.dtype != torch.float64
    return torch.get_autocast_dtype(kind) if applies else None


register(TableForward())
