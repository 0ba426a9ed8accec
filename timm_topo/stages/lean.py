"""A stage of nodes BN(conv(...conv(ReLU(x)))) in one table: trained with one kept map per node.

Autograd keeps some five maps per node of such a stage, and its backward pass moves each of the
N^2/2 edge gradients through memory several times. Here the maps of all nodes lie in one table:

- forward: a sum reads each of its inputs once, and batch norm writes to the table;
- backward: batch norm reads its normalised input off its output, (x_j - beta) / gamma (the idea of
  In-Place ABN, Rota Bulo et al., CVPR 2018); sums, ReLU and all but the last convolution are
  computed anew; the gradient with respect to a node's sum takes the place of its map, so that what
  a node gets from its readers is one sum again, and an edge weight gets one inner product;
- on CPU, sums and inner products of several nodes over the same maps are one product of matrices,
  which reads each map once for all of them.

Values and gradients are those of the equation in :class:`timm_topo.stages.GraphStage`.
"""

import itertools
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from ..wiring import Wiring
from .aggregate import make_table
from .blocks import Edges, blocks
from .reuse import borrowed, give_back, lent, take
from .table import Table

__all__ = [
    'Chain',
    'has_last',
    'lean_chains',
    'lean_entry',
    'lean_stage',
    'starts_with_relu',
]

aten = torch.ops.aten

# Below this |gamma| / |beta|, dividing by gamma costs more digits than a float32 can spare; what
# is rounded to half precision can spare hardly any.
_MIN_SCALE = 1e-2
_MIN_SCALE_OF_HALF = 0.5


@dataclass(frozen=True)
class Chain:
    """The layers of a node: BN(convs[-1](...convs[0](ReLU(x))))."""

    convs: tuple[nn.Conv2d, ...]
    bn: nn.BatchNorm2d

    def parameters(self) -> list[Tensor]:
        return [*(conv.weight for conv in self.convs), self.bn.weight, self.bn.bias]


def lean_chains(nodes: Sequence[nn.Module], raw: bool, training: bool) -> Optional[list[Chain]]:
    """The layers of all ``nodes``, or None if one computes, or is watched, in another way.

    All must be in training or in evaluation mode, and must keep the shape of their maps, but the
    first where it reads the stage input (``raw``).
    """
    chains = []
    for node in nodes:
        layers = node.layers() if hasattr(node, 'layers') else ()
        if not layers or any(_has_hooks(module) for module in (node, *layers)):
            return None
        act, *convs, bn = layers
        plain = type(act) is nn.ReLU and all(map(_is_plain_conv, convs)) and _is_plain_norm(bn)
        if not plain or {node.training, bn.training} != {training}:
            return None
        if not (raw and not chains) and not _keeps_shape(convs):
            return None
        chains.append(Chain(tuple(convs), bn))
    return chains


def lean_stage(
    wiring: Wiring, chains: Sequence[Chain], weights: Tensor, x: Tensor, x_0: Tensor, raw: bool
) -> Tensor:
    """The output of a stage; where gradients are wanted, in training mode.

    Args:
        wiring: N nodes.
        chains: Layers of the computing nodes.
        weights: Of all edges, ``(E,)``.
        x: Stage input.
        x_0: What the entry made of it.
        raw: Whether node 1 reads the stage input instead of x_0.
    """
    if not torch.is_grad_enabled():
        with borrowed(x_0, (wiring.num_nodes - 1, x_0.numel())) as flat:
            table = make_table(flat, x_0.shape, has_last(x_0))
            return _run(table, wiring, chains, weights, x, x_0, raw, together=1)[0]
    parameters = [p for chain in chains for p in chain.parameters()]
    return _LeanStage.apply(wiring, chains, raw, weights, x if raw else None, x_0, *parameters)


def lean_entry(entry: nn.Module, x: Tensor) -> Tensor:
    """``entry(x)``; beside its shortcut, which keeps x, it keeps what batch norm reads alone."""
    if not hasattr(entry, 'branches'):
        return entry(x)
    node, shortcut = entry.branches()
    act, *convs, norm = node.layers()
    if any(map(_has_hooks, (entry, node, act, *convs))) or not all(map(_is_plain_conv, convs)):
        return entry(x)

    def convolve(x: Tensor, *kernels: Tensor) -> Tensor:
        x = act(x)
        for conv, kernel in zip(convs, kernels):
            x = F.conv2d(x, kernel, None, conv.stride, conv.padding, conv.dilation, conv.groups)
        return x

    kernels = (conv.weight for conv in convs)  # arguments: a module may hold others later on
    y = checkpoint(convolve, x, *kernels, use_reentrant=False, preserve_rng_state=False)
    return norm(y) + shortcut(x)


class _LeanStage(torch.autograd.Function):
    @staticmethod
    def forward(ctx, wiring, chains, raw, weights, x, x_0, *parameters) -> Tensor:
        flat = take(x_0, (wiring.num_nodes - 1, x_0.numel()))
        table = make_table(flat, x_0.shape, has_last(x_0))
        out, statistics = _run(table, wiring, chains, weights, x, x_0, raw, table.together)
        ctx.kind, ctx.form = type(table), (table.shape, table.last)
        ctx.wiring, ctx.chains, ctx.raw = wiring, chains, raw
        ctx.save_for_backward(weights, x, table.flat, *statistics, *parameters)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out: Tensor):
        with torch.autocast(grad_out.device.type, enabled=False):  # types are those of forward
            return _stage_backward(ctx, grad_out)


def _stage_backward(ctx, grad_out: Tensor) -> tuple:
    """Gradients of the arguments of :meth:`_LeanStage.forward`."""
    wiring, chains = ctx.wiring, ctx.chains
    count, last = len(chains), wiring.num_nodes - 1
    weights, x, flat, *rest = ctx.saved_tensors
    again = _keeps_graph()
    if again:
        flat = flat.clone()  # a node that is done gives its place to the gradient
    table = ctx.kind(flat, *ctx.form)
    statistics, parameters = rest[:count], iter(rest[count:])
    own = [[next(parameters) for _ in chain.parameters()] for chain in chains]
    invertible = _invertible(own, flat.dtype)
    grad_weights, grad_x = torch.empty_like(weights), None
    grad_own = [()] * count
    grad_out = table.as_row(grad_out)
    order, starts = _by_source(wiring, weights.device)
    of_readers, one = weights[order], weights.new_ones(1)

    def pull(node: int, stop: int, later: Optional[Tensor]) -> Optional[Tensor]:
        """What the readers of a node give it: ``later`` of those from ``stop`` on."""
        skip = int(ctx.raw and node == 0 and wiring.succs(0)[:1] == (1,))
        of = of_readers[starts[node] + skip : starts[node + 1]]
        readers, also = wiring.succs(node)[skip:], []
        if readers and readers[-1] == last:
            readers, also = readers[:-1], [grad_out]
        if later is not None:
            near = bisect_left(readers, stop)
            of = torch.cat([of[:near], one, of[len(readers) :]])
            readers, also = readers[:near], [later, *also]
        return table.sum(readers, of, also) if readers or also else None

    by_weight = ctx.needs_input_grad[3]

    def credited(node: int, first: int) -> tuple[int, ...]:
        """Sources from ``first`` on."""
        preds = wiring.preds(node)
        return preds[bisect_left(preds, first) :] if by_weight else ()

    def credit(node: int, dots: Tensor) -> None:
        """To the last in-edges of a node."""
        stop = wiring.in_edges[node][1]
        grad_weights[stop - len(dots) : stop] = dots

    def at_once(edges: Edges, first: int, lends: ExitStack) -> list[Tensor]:
        place = lends.enter_context(lent(flat, edges.shape[0] * flat.shape[1]))
        return table.sums(edges.matrix(weights), first, place)

    credit(last, table.dots(credited(last, 0), grad_out))
    for block in reversed(blocks(wiring, table.together, 1 + ctx.raw)):
        first, stop = block.nodes.start, block.nodes.stop
        near = 0 if block.read is None else first  # the first map whose product is a node's own
        reads, later = [None] * len(block.nodes), [None] * len(block.nodes)
        with ExitStack() as lends:
            if block.read is not None:
                reads = at_once(block.read, 0, lends)
            if block.behind:
                later = at_once(block.after, stop, lends)
            for node in reversed(block.nodes):
                if reads[node - first] is None:
                    read = _read(table, x, wiring, weights, ctx.raw, node)
                else:
                    read = table.shaped(reads[node - first].clamp_min(0).view(-1))
                grad, grad_own[node - 1] = _chain_backward(
                    chains[node - 1], own[node - 1], statistics[node - 1], read, table[node],
                    pull(node, stop, later[node - first]), invertible[node - 1],
                )  # fmt: skip
                if ctx.raw and node == 1:
                    grad = aten.threshold_backward(grad, read, 0)
                    credit(node, (grad * x).sum(dtype=weights.dtype).view(1))
                    grad_x = (grad * weights[0]).to(x.dtype)
                else:
                    credit(node, table.gate(node, grad, read, credited(node, near)))
        if by_weight and near:
            dots = block.before.pick(table.inner(first, stop))
            grad_weights[block.before.numbers] = dots.to(weights.dtype)
    grad_own = [g for node in grad_own for g in node]
    grad_x_0 = pull(0, last, None)
    if not again:
        give_back(flat)
    grad_weights = grad_weights if by_weight else None
    return None, None, None, grad_weights, grad_x, grad_x_0, *grad_own


def has_last(x: Tensor) -> bool:
    """Whether channels come last in memory."""
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def _run(
    table: Table,
    wiring: Wiring,
    chains: Sequence[Chain],
    weights: Tensor,
    x: Optional[Tensor],
    x_0: Tensor,
    raw: bool,
    together: int,
) -> tuple[Tensor, list[Tensor]]:
    """The stage output; and, in training, mean and 1 / sqrt(variance + eps) that each norm used."""
    table[0].copy_(x_0)
    statistics = []
    for y, chain in zip(_reads(table, x, wiring, weights, raw, together), chains):
        for conv in chain.convs:
            y = _conv(y, conv, conv.weight)
        node = len(statistics) + 1
        statistics.append(_norm_into(table[node], table.as_laid_out(y), chain.bn))
    last = wiring.num_nodes - 1
    return table.sum(wiring.preds(last), in_weights(wiring, weights, last)), statistics


def _reads(
    table: Table,
    x: Optional[Tensor],
    wiring: Wiring,
    weights: Tensor,
    raw: bool,
    together: int,
) -> Iterator[Tensor]:
    """What each node reads, in order; its map must be in the table before the next is taken."""
    one = weights.new_ones(1)
    for block in blocks(wiring, together, 1 + raw):
        if not block.ahead:
            for node in block.nodes:
                yield _read(table, x, wiring, weights, raw, node)
            continue
        with lent(table.flat, len(block.nodes) * table.flat.shape[1]) as place:
            sums = table.sums(block.before.matrix(weights), 0, place)
            for node, earlier in zip(block.nodes, sums):
                preds, own = wiring.preds(node), in_weights(wiring, weights, node)
                near = bisect_left(preds, block.nodes.start)
                yield table.sum(preds[near:], torch.cat([own[near:], one]), [earlier], relu=True)


def _read(
    table: Table, x: Optional[Tensor], wiring: Wiring, weights: Tensor, raw: bool, node: int
) -> Tensor:
    """What the first convolution of ``node`` reads, in a map of its own."""
    own = in_weights(wiring, weights, node)
    if raw and node == 1:
        return (x * own).to(table.flat.dtype).relu_()
    return table.sum(wiring.preds(node), own, relu=True)


def in_weights(wiring: Wiring, weights: Tensor, node: int) -> Tensor:
    start, stop = wiring.in_edges[node]
    return weights[start:stop]


@lru_cache(maxsize=256)
def _by_source(wiring: Wiring, device: torch.device) -> tuple[Tensor, list[int]]:
    """Edges sorted by source, then target; and where those of each source start."""
    order = sorted(range(wiring.num_edges), key=lambda e: wiring.edges[e])
    with torch.inference_mode(False):
        order = torch.tensor(order, device=device)
    return order, [0, *itertools.accumulate(wiring.out_degrees)]


def _conv(x: Tensor, conv: nn.Conv2d, weight: Tensor) -> Tensor:
    weight = weight.to(x.dtype)  # under autocast
    if _is_product(x, conv, weight):
        return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1)).permute(0, 3, 1, 2)
    return F.conv2d(x, weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)


def _conv_backward(
    grad: Tensor, x: Tensor, conv: nn.Conv2d, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients with respect to what a convolution reads and to its weights."""
    narrow = weight.to(x.dtype)
    if _is_product(x, conv, weight):
        rows, grads = (t.permute(0, 2, 3, 1) for t in (x, grad))
        grad = (grads @ narrow.flatten(1)).permute(0, 3, 1, 2)
        grad_weight = (grads.flatten(0, 2).t() @ rows.flatten(0, 2)).view_as(weight)
        return grad, grad_weight.to(weight.dtype)
    grad, grad_weight, _ = aten.convolution_backward(
        grad, x, narrow, None, conv.stride, conv.padding, conv.dilation,
        False, [0, 0], conv.groups, [True, True, False],
    )  # fmt: skip
    return grad, grad_weight.to(weight.dtype)


def _is_product(x: Tensor, conv: nn.Conv2d, weight: Tensor) -> bool:
    """Whether to convolve by one product of matrices.

    On CPU a convolution first brings its weights into another order; where these are more than the
    values it reads, that takes longer than what follows.
    """
    pointwise = conv.kernel_size == (1, 1) and conv.stride == (1, 1) and conv.groups == 1
    last = x.is_contiguous(memory_format=torch.channels_last)
    small = x.numel() < weight.numel() and x.device.type == 'cpu'
    return small and last and pointwise and conv.padding == (0, 0)


def _norm_into(out: Tensor, y: Tensor, bn: nn.BatchNorm2d) -> Tensor:
    """BN, written to ``out``, which must lie in memory as ``y``; returns what it used, ``(2, C)``.

    In evaluation PyTorch writes that on GPUs alone.
    """
    if bn.training and y.numel() == y.shape[1]:
        raise ValueError(
            f'expected more than 1 value per channel in training, got {tuple(y.shape)}'
        )
    dtype = _type_of_statistics(y.device.type, bn.weight.dtype)
    statistics = bn.weight.new_empty(2, y.shape[1], dtype=dtype)
    running = bn.running_mean, bn.running_var
    if bn.training and bn.track_running_stats:
        bn.num_batches_tracked.add_(1)
    elif bn.training:
        running = None, None
    aten.native_batch_norm.out(
        y, bn.weight, bn.bias, *running, bn.training, bn.momentum, bn.eps,
        out=out, save_mean=statistics[0], save_invstd=statistics[1],
    )  # fmt: skip
    return statistics


def _type_of_statistics(device: str, dtype: torch.dtype) -> torch.dtype:
    """What batch norm with parameters of ``dtype`` writes means and scales in."""
    return dtype if device == 'cpu' else torch.promote_types(dtype, torch.float32)


def _invertible(parameters: Sequence[Sequence[Tensor]], dtype: torch.dtype) -> list[bool]:
    """Whether the input of each norm can be read off its output of this precision."""
    if not parameters:
        return []
    gammas, betas = (torch.stack([own[k] for own in parameters]).abs() for k in (-2, -1))
    least = _MIN_SCALE if dtype in (torch.float32, torch.float64) else _MIN_SCALE_OF_HALF
    return (gammas > least * betas.clamp(min=least)).all(1).tolist()


def _chain_backward(
    chain: Chain,
    parameters: Sequence[Tensor],
    statistics: Tensor,
    read: Tensor,
    x_j: Tensor,
    grad: Tensor,
    invertible: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Gradients with respect to ``read``, what the first convolution reads, and to parameters."""
    *kernels, gamma, beta = parameters
    inputs = [read]
    for conv, kernel in zip(chain.convs[:-1], kernels):
        inputs.append(_conv(inputs[-1], conv, kernel))
    mean, scale = statistics
    if invertible:  # batch norm from its output: xhat = (x_j - beta) / gamma has mean 0, scale 1
        y, mean, per, weight = x_j, beta, 1 / gamma, gamma * gamma * scale
    else:
        y, per, weight = _conv(inputs[-1], chain.convs[-1], kernels[-1]), scale, gamma
    grad, grad_gamma, grad_beta = aten.native_batch_norm_backward(
        grad, y, weight, None, None, mean, per, True, chain.bn.eps, [True, True, True]
    )
    grad_kernels = []
    for conv, kernel, x in reversed(list(zip(chain.convs, kernels, inputs))):
        grad, grad_kernel = _conv_backward(grad, x, conv, kernel)
        grad_kernels.insert(0, grad_kernel)
    return grad, (*grad_kernels, grad_gamma, grad_beta)


def _keeps_graph() -> bool:
    """Whether a backward pass is under way after which there may be another (retain_graph)."""
    keeps = getattr(torch._C._autograd, '_get_current_graph_task_keep_graph', None)
    return keeps is None or keeps()


def starts_with_relu(node: nn.Module) -> bool:
    """Whether a node is its ``layers()`` one after another, a ReLU first that nobody watches."""
    layers = node.layers() if hasattr(node, 'layers') else ()
    return (
        bool(layers) and type(layers[0]) is nn.ReLU and not any(map(_has_hooks, (node, layers[0])))
    )


def _is_plain_conv(module: nn.Module) -> bool:
    return (
        type(module) is nn.Conv2d and module.bias is None and module.padding_mode == 'zeros'
        and not isinstance(module.padding, str)
    )  # fmt: skip


def _keeps_shape(convs: Sequence[nn.Conv2d]) -> bool:
    sizes = (
        stride == 1 and 2 * padding == dilation * (kernel - 1)
        for conv in convs
        for stride, padding, dilation, kernel in zip(
            conv.stride, conv.padding, conv.dilation, conv.kernel_size
        )
    )
    return all(sizes) and convs[0].in_channels == convs[-1].out_channels


def _is_plain_norm(module: nn.Module) -> bool:
    plain = type(module) is nn.BatchNorm2d and module.affine and module.momentum is not None
    return plain and (module.training or module.running_mean is not None)


def _has_hooks(module: nn.Module) -> bool:
    return any(
        (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks,
         module._backward_pre_hooks)
    )  # fmt: skip
