"""Weighted sum of feature maps, y = sum_i w_i x_i: readable reference and fast path."""

import os
import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import List, Optional

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from .table import Table

__all__ = [
    'aggregate',
    'aggregate_reference',
    'is_eager',
    'is_fused',
    'make_table',
    'set_fused_aggregate',
    'sum_gradients',
]

_fused: Optional[bool] = None


def set_fused_aggregate(enable: Optional[bool] = True) -> None:
    """Whether sums over maps on a GPU are Triton kernels, the ReLU after them folded in.

    Args:
        enable: By default (None) they are on NVIDIA GPUs, where Triton works. What is traced,
            scripted or compiled never uses them.

    Raises:
        ImportError: They are to be used, and Triton is missing or older than 3.2.
    """
    global _fused
    if enable:
        _import_fused()
    _fused = enable


def is_fused(x: Tensor) -> bool:
    """Whether sums over maps like ``x`` are Triton kernels.

    Triton's interpreter (``TRITON_INTERPRET=1``) takes maps on CPU too, where they are asked for.
    """
    if _fused is False or not is_eager(x) or not x.numel():
        return False
    if x.is_cuda:
        return bool(_fused) or _works_on(x.device)
    return bool(_fused) and x.device.type == 'cpu' and os.environ.get('TRITON_INTERPRET') == '1'


def is_eager(x: Tensor) -> bool:
    """Whether operators run when they are called, on memory.

    Not so in what is traced, compiled or exported, nor where something stands between (tensors
    without values, modes that watch operators).
    """
    if torch.jit.is_tracing() or torch.compiler.is_compiling() or _get_current_dispatch_mode():
        return False
    return type(x) in (Tensor, nn.Parameter) and not x.is_meta


@lru_cache
def _works_on(device: torch.device) -> bool:
    """Whether the kernels run: Triton compiles them, for which it needs a C compiler."""
    if torch.version.hip:  # not tried
        return False
    try:
        x = torch.ones(1, 1, 1, 1, device=device)
        _import_fused().fused_sum([x], torch.ones(1, device=device), False)
    except Exception as error:  # whatever Triton, its compiler or the driver raises
        warnings.warn(
            f'sums over maps on {device} run without Triton, which is slower: {error} '
            '(set_fused_aggregate(False) says that this is meant)',
            stacklevel=3,
        )
        return False
    return True


def _import_fused():
    try:
        import triton

        if tuple(map(int, triton.__version__.split('.')[:2])) < (3, 2):
            raise ImportError(f'Triton is {triton.__version__}')
        from . import fused
    except ImportError as error:
        raise ImportError(f'{error}: the fused sum needs Triton 3.2 or newer') from None
    return fused


def make_table(flat: Tensor, shape: torch.Size, last: bool) -> Table:
    """A :class:`Table` whose sums are what :func:`is_fused` says."""
    kind = _import_fused().FusedTable if is_fused(flat) else Table
    return kind(flat, shape, last)


def aggregate(inputs: List[Tensor], weights: Tensor, relu: bool = False) -> Tensor:
    """Weighted sum of feature maps (TopoNet, Eq. 1).

    The result is a new tensor that nothing else holds, so the caller may change it in place.

    Args:
        inputs: ``in_degree >= 1`` maps of one shape ``(B, C, H, W)``, dtype and device.
        weights: ``(in_degree,)``, or ``(B, in_degree)`` for weights per image.
        relu: Whether to return max(y, 0).

    Returns:
        ``(B, C, H, W)`` in the dtype of the inputs; half precision is accumulated in float32.

    Raises:
        ValueError: No inputs, or weights that do not fit them.
    """
    if torch.jit.is_scripting() or torch.compiler.is_compiling() or torch.jit.is_tracing():
        total = aggregate_reference(inputs, weights)
    else:
        _check(inputs, weights)
        if is_fused(inputs[0]):
            return _import_fused().fused_sum(inputs, weights, relu)
        total = _WeightedSum.apply(weights, *inputs)
    return total.relu_() if relu else total


def aggregate_reference(inputs: List[Tensor], weights: Tensor) -> Tensor:
    """The same in plain torch, for tracing and compiling (which fuse it) and as a reference.

    Args:
        inputs: As for :func:`aggregate`.
        weights: As for :func:`aggregate`.

    Returns:
        ``(B, C, H, W)``.
    """
    w = _columns(weights, inputs[0].dtype)
    total = inputs[0] * w[0]
    for i in range(1, len(inputs)):
        total = total + inputs[i] * w[i]
    return total.to(inputs[0].dtype)


def _columns(weights: Tensor, dtype: torch.dtype) -> List[Tensor]:
    """Weights per input, shaped to broadcast against ``(B, C, H, W)``, wide enough to add up in.

    A weight with dimensions widens a half-precision map that it multiplies; a 0-dim one does not.
    """
    if dtype == torch.float16 or dtype == torch.bfloat16:
        dtype = torch.float32
    return list(weights.to(dtype)[..., None, None, None].unbind(-4))


def _check(inputs: List[Tensor], weights: Tensor) -> None:
    if not inputs:
        raise ValueError('aggregate needs at least one input')
    shape = inputs[0].shape
    for x in inputs:
        if x.shape != shape:
            raise ValueError(f'inputs differ in shape: {tuple(shape)} and {tuple(x.shape)}')
    fits = weights.ndim in (1, 2) and weights.shape[-1] == len(inputs)
    if not fits or (weights.ndim == 2 and weights.shape[0] != shape[0]):
        raise ValueError(
            f'weights must be ({len(inputs)},) or ({shape[0]}, {len(inputs)}) for {len(inputs)} '
            f'inputs of {tuple(shape)}, got {tuple(weights.shape)}'
        )


class _WeightedSum(torch.autograd.Function):
    """One node of the autograd graph for the whole sum.

    Forward accumulates in place: one read per input, no product is stored. Backward is written
    with differentiable operations, so second derivatives work.
    """

    @staticmethod
    def forward(weights: Tensor, *inputs: Tensor) -> Tensor:
        w = _columns(weights, inputs[0].dtype)
        total = inputs[0] * w[0]
        for x, w_x in zip(inputs[1:], w[1:]):
            total.addcmul_(x, w_x)
        return total.to(inputs[0].dtype)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        weights, *maps = inputs
        # fixed weights have no gradient: then the maps need not be kept
        ctx.save_for_backward(weights, *(maps if ctx.needs_input_grad[0] else ()))

    @staticmethod
    def backward(ctx, grad: Tensor):
        weights, *maps = ctx.saved_tensors
        return tuple(sum_gradients(grad, weights, maps, ctx.needs_input_grad[1:]))


def sum_gradients(
    grad: Tensor, weights: Tensor, maps: Sequence[Tensor], needed: Sequence[bool]
) -> List[Optional[Tensor]]:
    """Gradients of a weighted sum with respect to its weights and maps, differentiable.

    Args:
        grad: With respect to the sum.
        weights: As for :func:`aggregate`.
        maps: Empty where the weights need no gradient.
        needed: Which maps need one.
    """
    grad_weights = None
    if maps:
        grad_weights = torch.stack([_dot(grad, x, weights.ndim) for x in maps], -1)
        grad_weights = grad_weights.to(weights.dtype)
    w = _columns(weights, grad.dtype)
    grad_maps = [(grad * w_x).to(grad.dtype) if n else None for w_x, n in zip(w, needed)]
    return [grad_weights, *grad_maps]


def _dot(a: Tensor, b: Tensor, weights_ndim: int) -> Tensor:
    """Inner product over everything, ``()``, or per image, ``(B,)``; in float32 at least."""
    if weights_ndim == 2:
        return (a * b).sum((1, 2, 3), dtype=_sum_dtype(a))
    if a.dtype in (torch.float32, torch.float64) and a.dtype == b.dtype:
        for layout in (torch.contiguous_format, torch.channels_last):
            if a.is_contiguous(memory_format=layout) and b.is_contiguous(memory_format=layout):
                order = (0, 2, 3, 1) if layout == torch.channels_last else (0, 1, 2, 3)
                return torch.dot(a.permute(order).reshape(-1), b.permute(order).reshape(-1))
    return (a * b).sum(dtype=_sum_dtype(a))


def _sum_dtype(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
