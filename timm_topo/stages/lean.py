"""Training a stage of nodes BN(conv(...conv(ReLU(x)))) on CPU with one kept map per node.

Autograd keeps some five maps per node of such a stage, and its backward pass moves each of the
N^2/2 edge gradients through memory several times. Here the maps of all nodes lie in one table:

- forward: a sum reads each of its inputs once (``embedding_bag`` over rows of the table);
- backward: batch norm reads its normalised input off its output, (x_j - beta) / gamma (the idea of
  In-Place ABN, Rota Bulo et al., CVPR 2018); sums, ReLU and all but the last convolution are
  computed anew; the gradient with respect to a node's sum takes the place of its map, so that what
  a node gets from its readers is one sum again, and an edge weight gets one inner product.

Values and gradients are those of the equation in :class:`timm_topo.stages.GraphStage`.
"""

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from ..wiring import Wiring

__all__ = ['Chain', 'lean_chains', 'lean_entry', 'lean_stage', 'let_go', 'starts_with_relu']

aten = torch.ops.aten

_FREE: list[Tensor] = []  # tables of the last training step
_LOCK = threading.Lock()

# Below this |gamma| / |beta|, dividing by gamma costs more digits than a float32 can spare.
_MIN_SCALE = 1e-2


@dataclass(frozen=True)
class Chain:
    """The layers of a node: BN(convs[-1](...convs[0](ReLU(x))))."""

    convs: tuple[nn.Conv2d, ...]
    bn: nn.BatchNorm2d

    def parameters(self) -> list[Tensor]:
        return [*(conv.weight for conv in self.convs), self.bn.weight, self.bn.bias]


def lean_chains(nodes: Sequence[nn.Module], raw: bool) -> Optional[list[Chain]]:
    """The layers of all ``nodes``, or None if one computes, or is watched, in another way.

    All must keep the shape of their maps, but the first where it reads the stage input (``raw``).
    """
    chains = []
    for node in nodes:
        layers = node.layers() if hasattr(node, 'layers') else ()
        if not layers or any(_has_hooks(module) for module in (node, *layers)):
            return None
        act, *convs, bn = layers
        plain = type(act) is nn.ReLU and all(map(_is_plain_conv, convs)) and _is_plain_norm(bn)
        if not plain or not node.training:
            return None
        if not (raw and not chains) and not _keeps_shape(convs):
            return None
        chains.append(Chain(tuple(convs), bn))
    return chains


def lean_stage(
    wiring: Wiring, chains: Sequence[Chain], weights: Tensor, x: Tensor, x_0: Tensor, raw: bool
) -> Tensor:
    """The output of a stage.

    Args:
        wiring: N nodes.
        chains: Layers of the computing nodes, all in training mode.
        weights: Of all edges, ``(E,)``.
        x: Stage input.
        x_0: What the entry made of it.
        raw: Whether node 1 reads the stage input instead of x_0.
    """
    parameters = [p for chain in chains for p in chain.parameters()]
    return _LeanStage.apply(wiring, chains, raw, weights, x if raw else None, x_0, *parameters)


def lean_entry(entry: nn.Module, x: Tensor) -> Tensor:
    """``entry(x)``; beside its shortcut, which keeps x, it keeps what batch norm reads alone."""
    if not hasattr(entry, 'branches'):
        return entry(x)
    node, shortcut = entry.branches()
    *layers, norm = node.layers()
    if any(map(_has_hooks, (entry, node, *layers))):
        return entry(x)
    convolve = nn.Sequential(*layers)
    y = checkpoint(convolve, x, use_reentrant=False, preserve_rng_state=False)
    return norm(y) + shortcut(x)


class _Table:
    """Maps of one shape, one after another in memory, each cut into rows of one length."""

    def __init__(self, flat: Tensor, shape: torch.Size, last: bool):
        self.flat, self.shape, self.last = flat, shape, last  # last: channels
        self.rows = flat.view(-1, _row_length(flat.shape[1]))
        self.per_map = len(self.rows) // len(flat)

    def __getitem__(self, k: int) -> Tensor:
        return self.shaped(self.flat[k])

    def shaped(self, flat: Tensor) -> Tensor:
        """``(B, C, H, W)`` in the layout of this table."""
        if self.last:
            b, c, h, w = self.shape
            return flat.view(b, h, w, c).permute(0, 3, 1, 2)
        return flat.view(self.shape)

    def as_row(self, x: Tensor) -> Tensor:
        """The values of a map ``(B, C, H, W)`` in the order of this table."""
        return (x.permute(0, 2, 3, 1) if self.last else x).reshape(-1)

    def sum(self, maps: Sequence[int], weights: Tensor) -> Tensor:
        """Weighted sum of some maps: each is read once, and added up in registers."""
        first = torch.arange(self.per_map)[:, None]
        index = first + torch.tensor(maps) * self.per_map
        spread = weights.expand(self.per_map, -1).contiguous()
        total = F.embedding_bag(index, self.rows, mode='sum', per_sample_weights=spread)
        return self.shaped(total.view(-1))

    def dots(self, maps: Sequence[int], other: Tensor) -> Tensor:
        """Inner products of some maps with the map ``other``, flat as here."""
        return torch.stack([torch.dot(self.flat[k], other) for k in maps])


class _LeanStage(torch.autograd.Function):
    @staticmethod
    def forward(ctx, wiring, chains, raw, weights, x, x_0, *parameters) -> Tensor:
        flat = _take(x_0, (wiring.num_nodes - 1, x_0.numel()))
        ctx.form = x_0.shape, not x_0.is_contiguous()
        table = _Table(flat, *ctx.form)
        table[0].copy_(x_0)
        scales = []
        for node, chain in enumerate(chains, start=1):
            y = _read(table, x, wiring, weights, raw, node).relu_()
            for conv in chain.convs:
                y = _conv(y, conv, conv.weight)
            scales.append(_norm_into(table[node], y, chain.bn))
        last = wiring.num_nodes - 1
        out = table.sum(wiring.preds(last), _in_weights(wiring, weights, last))
        ctx.wiring, ctx.chains, ctx.raw = wiring, chains, raw
        ctx.save_for_backward(weights, x, flat, *scales, *parameters)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out: Tensor):
        wiring, chains = ctx.wiring, ctx.chains
        count = len(chains)
        weights, x, flat, *rest = ctx.saved_tensors
        again = _keeps_graph()
        if again:
            flat = flat.clone()  # a node that is done gives its place to the gradient
        table = _Table(flat, *ctx.form)
        scales, parameters = rest[:count], iter(rest[count:])
        own = [[next(parameters) for _ in chain.parameters()] for chain in chains]
        grad_weights, grad_x = torch.empty_like(weights), None
        grad_own = [()] * count
        by_weight = ctx.needs_input_grad[3]
        index = {edge: e for e, edge in enumerate(wiring.edges)}
        last = wiring.num_nodes - 1
        grad_out = table.as_row(grad_out)

        def credit(node: int, grad: Tensor) -> None:
            start, stop = wiring.in_edges[node]
            if by_weight:
                grad_weights[start:stop] = table.dots(wiring.preds(node), grad)

        def pull(node: int) -> Optional[Tensor]:
            readers = [t for t in wiring.succs(node) if not (ctx.raw and (node, t) == (0, 1))]
            if not readers:
                return None
            of = weights[[index[node, t] for t in readers]]
            if readers[-1] < last:
                return table.sum(readers, of)
            if len(readers) == 1:
                return table.shaped(grad_out * of)
            total = table.sum(readers[:-1], of[:-1])
            return total.add_(table.shaped(grad_out), alpha=of[-1].item())

        credit(last, grad_out)
        for node in range(count, 0, -1):
            read = _read(table, x, wiring, weights, ctx.raw, node).relu_()
            grad, grad_own[node - 1] = _chain_backward(
                chains[node - 1], own[node - 1], scales[node - 1], read, table[node], pull(node)
            )
            if ctx.raw and node == 1:
                aten.threshold_backward.grad_input(grad, read, 0, grad_input=grad)
                if by_weight:
                    grad_weights[0] = (grad * x).sum()
                grad_x = grad.mul_(weights[0])
            else:
                aten.threshold_backward.grad_input(grad, read, 0, grad_input=table[node])
                credit(node, table.flat[node])
        grad_own = [g for node in grad_own for g in node]
        grad_x_0 = pull(0)
        if not again:
            _give_back(flat)
        return None, None, None, grad_weights if by_weight else None, grad_x, grad_x_0, *grad_own


def _read(
    table: _Table, x: Optional[Tensor], wiring: Wiring, weights: Tensor, raw: bool, node: int
) -> Tensor:
    """What ``node`` reads: the weighted sum, in a map of its own."""
    own = _in_weights(wiring, weights, node)
    return x * own if raw and node == 1 else table.sum(wiring.preds(node), own)


def _in_weights(wiring: Wiring, weights: Tensor, node: int) -> Tensor:
    start, stop = wiring.in_edges[node]
    return weights[start:stop]


def _conv(x: Tensor, conv: nn.Conv2d, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)


def _norm_into(out: Tensor, y: Tensor, bn: nn.BatchNorm2d) -> Tensor:
    """BN in training mode, written to ``out``; returns 1 / sqrt(variance + eps)."""
    mean, scale = y.new_empty(2, y.shape[1])
    if bn.track_running_stats:
        bn.num_batches_tracked.add_(1)
    aten.native_batch_norm.out(
        y, bn.weight, bn.bias, bn.running_mean, bn.running_var, True, bn.momentum, bn.eps,
        out=out, save_mean=mean, save_invstd=scale,
    )  # fmt: skip
    return scale.clone()


def _chain_backward(
    chain: Chain,
    parameters: Sequence[Tensor],
    scale: Tensor,
    read: Tensor,
    x_j: Tensor,
    grad: Tensor,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Gradients with respect to ``read``, what the first convolution reads, and to parameters."""
    *kernels, gamma, beta = parameters
    inputs = [read]
    for conv, kernel in zip(chain.convs[:-1], kernels):
        inputs.append(_conv(inputs[-1], conv, kernel))
    # batch norm from its output: xhat = (x_j - beta) / gamma has mean 0 and scale 1
    if bool((gamma.abs() > _MIN_SCALE * beta.abs().clamp(min=_MIN_SCALE)).all()):
        y, mean, per, weight = x_j, beta, 1 / gamma, gamma * gamma * scale
    else:
        y = _conv(inputs[-1], chain.convs[-1], kernels[-1])
        mean, per, weight = y.mean((0, 2, 3)), scale, gamma
    grad, grad_gamma, grad_beta = aten.native_batch_norm_backward(
        grad, y, weight, None, None, mean, per, True, chain.bn.eps, [True, True, True]
    )
    grad_kernels = []
    for conv, kernel, x in reversed(list(zip(chain.convs, kernels, inputs))):
        grad, grad_kernel, _ = aten.convolution_backward(
            grad, x, kernel, None, conv.stride, conv.padding, conv.dilation,
            False, [0, 0], conv.groups, [True, True, False],
        )  # fmt: skip
        grad_kernels.insert(0, grad_kernel)
    return grad, (*grad_kernels, grad_gamma, grad_beta)


def _take(like: Tensor, shape: tuple[int, int]) -> Tensor:
    """Memory for a table: one that was given back, as fresh pages can cost more than the sums."""
    with _LOCK:
        for k, flat in enumerate(_FREE):
            if flat.shape == shape and flat.dtype == like.dtype:
                return _FREE.pop(k)
        _FREE.clear()  # other shapes: what is left of those before goes
    return like.new_empty(shape)


def _give_back(flat: Tensor) -> None:
    with _LOCK:
        _FREE.append(flat)


def let_go() -> None:
    """Free the tables that wait for the next training step."""
    with _LOCK:
        _FREE.clear()


def _keeps_graph() -> bool:
    """Whether a backward pass is under way after which there may be another (retain_graph)."""
    keeps = getattr(torch._C._autograd, '_get_current_graph_task_keep_graph', None)
    return keeps is None or keeps()


@lru_cache(maxsize=256)
def _row_length(size: int, most: int = 4096) -> int:
    """The longest row of at most ``most`` that divides ``size``."""
    return (
        math.gcd(size, most)
        if size % most == 0
        else max(d for d in range(1, min(size, most) + 1) if size % d == 0)
    )


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
    return plain and module.training


def _has_hooks(module: nn.Module) -> bool:
    return any(
        (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks,
         module._backward_pre_hooks)
    )  # fmt: skip
