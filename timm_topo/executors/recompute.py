"""Training in one table: one kept map per node, everything else computed anew.

Autograd keeps some five maps per node of a stage, and its backward pass moves each of the N^2/2
edge gradients through memory several times. Here

- forward: the maps of all nodes lie in one table (:mod:`.table_stage`);
- backward: batch norm reads its normalised input off its output, (x_j - beta) / gamma (the idea of
  In-Place ABN, Rota Bulo et al., CVPR 2018); sums, ReLU and all but the last convolution are
  computed anew; the gradient of a node's sum takes the place of its map (:mod:`.sums`).

Values and gradients are those of the equation in :class:`timm_topo.stages.GraphStage`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from ..nodes import NodeLayers, ShortcutEntry
from ..stages import Executor, GraphStage, Stage, register
from ..stages.stage import recomputes
from ..watched import watched_any
from .conv_bn import invertible, layers_backward
from .kernels import make_table
from .layout import in_best_layout, is_channels_last
from .plain import conv_objection, is_layered
from .schedule import schedule
from .sums import BackwardSums
from .table_stage import autocast_dtype, fill, table_objection
from .workspace import acquire, release

__all__ = ['Recompute']

aten = torch.ops.aten


class Recompute(Executor):
    """Training with one kept map per node. Derivatives of derivatives need the reference."""

    name = 'recompute'
    rank = 30

    def objection(self, stage: Stage, x: Tensor) -> str:
        if not torch.is_grad_enabled():
            return 'no gradient is wanted'
        if not stage.training:
            return 'gradients in evaluation mode'
        if recomputes(stage):
            return 'activation checkpointing is on'
        return table_objection(stage, x)

    def run(self, stage: GraphStage, x: Tensor) -> Tensor:
        return in_best_layout(x, lambda x: _train(stage, x))


def _train(stage: GraphStage, x: Tensor) -> Tensor:
    weights, x_0 = stage.connectivity.pass_weights(), _entry(stage.entry, x)
    x_0 = x_0.to(autocast_dtype(x) or x_0.dtype)
    layers = [node.layers() for node in stage.nodes]
    parameters = [p for own in layers for p in own.parameters()]
    first = x if stage.first_reads_input else None
    return _StageFunction.apply(stage, layers, weights, first, x_0, *parameters)


def _entry(entry: torch.nn.Module, x: Tensor) -> Tensor:
    """``entry(x)``; of its node only the input of batch norm is kept, beside the shortcut's x."""
    if not isinstance(entry, ShortcutEntry) or type(entry).forward is not ShortcutEntry.forward:
        return entry(x)
    node = entry.node
    if not is_layered(node):
        return entry(x)
    layers = node.layers()
    if watched_any((entry, node, *layers)) or any(map(conv_objection, layers.convs)):
        return entry(x)

    def convolved(x: Tensor, *kernels: Tensor) -> Tensor:
        x = layers.act(x)
        for conv, kernel in zip(layers.convs, kernels):
            x = F.conv2d(x, kernel, None, conv.stride, conv.padding, conv.dilation, conv.groups)
        return x

    kernels = (conv.weight for conv in layers.convs)  # arguments: a module may get others later
    y = checkpoint(convolved, x, *kernels, use_reentrant=False, preserve_rng_state=False)
    return layers.norm(y) + entry.shortcut(x)


class _StageFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, stage, layers, weights, x, x_0, *parameters) -> Tensor:
        wiring = stage.wiring
        flat = acquire(x_0, (wiring.num_nodes - 1, x_0.numel()))
        table = make_table(flat, x_0.shape, is_channels_last(x_0))
        first = 1 + stage.first_reads_input
        groups = schedule(wiring, table.sums_per_product, first)
        out, statistics = fill(table, stage, layers, weights, x, x_0, groups)
        ctx.table, ctx.form = type(table), (table.shape, table.channels_last)
        ctx.wiring, ctx.layers = wiring, layers
        ctx.groups = [group for group in groups if group.nodes[0] >= first]
        ctx.save_for_backward(weights, x, flat, *statistics, *parameters)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output: Tensor):
        with torch.autocast(grad_output.device.type, enabled=False):  # types are those of forward
            return (None, None, *_gradients(ctx, grad_output))


def _gradients(ctx, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of the weights, of x, of x_0 and of the parameters."""
    weights, x, flat, *rest = ctx.saved_tensors
    again = torch._C._autograd._get_current_graph_task_keep_graph()  # retain_graph
    if again:
        flat = flat.clone()  # gradients take the places of maps
    statistics, parameters = _by_node(ctx.layers, rest)
    inverts = invertible(parameters, statistics, flat.dtype)
    table = ctx.table(flat, *ctx.form)
    weighted, skipped = ctx.needs_input_grad[2], int(x is not None)
    sums = BackwardSums(table, ctx.wiring, weights, grad_output, ctx.groups, skipped, weighted)
    grads, grad_x = [()] * len(ctx.layers), None

    def through(node: int, read: Tensor, grad: Tensor) -> Tensor:
        k = node - 1
        grad, grads[k] = layers_backward(
            ctx.layers[k], parameters[k], statistics[k], read, table[node], grad, inverts[k]
        )
        return grad

    for node, read, grad in sums.nodes():
        sums.finish(node, through(node, read, grad), read)
    if x is not None:  # node 1 read the stage input
        read = (x * weights[:1]).to(flat.dtype).relu_()
        grad = aten.threshold_backward(through(1, read, sums.map_gradient(1)), read, 0)
        sums.grad_weights[0] = (grad * x).sum(dtype=weights.dtype)
        grad_x = (grad * weights[0]).to(x.dtype)
    grad_x_0 = sums.map_gradient(0)
    if not again:
        release(flat)
    grad_weights = sums.grad_weights if weighted else None
    return grad_weights, grad_x, grad_x_0, *(grad for node in grads for grad in node)


def _by_node(
    layers: Sequence[NodeLayers], saved: Sequence[Tensor]
) -> tuple[list[Tensor], list[list[Tensor]]]:
    """Statistics and parameters by node, from the tensors saved for the backward pass."""
    statistics, parameters = saved[: len(layers)], iter(saved[len(layers) :])
    return statistics, [[next(parameters) for _ in own.parameters()] for own in layers]


register(Recompute())
