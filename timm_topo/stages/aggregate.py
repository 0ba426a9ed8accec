"""Weighted sum of feature maps, y = sum_i w_i x_i, and its gradients."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ['aggregate', 'aggregate_reference', 'check_sum', 'is_transformed', 'sum_gradients']


def aggregate(inputs: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Weighted sum of feature maps (TopoNet, Eq. 1).

    The result is a new tensor that nothing else holds, so the caller may change it in place.

    Args:
        inputs: ``in_degree >= 1`` maps of one shape ``(B, C, H, W)``, dtype and device.
        weights: ``(in_degree,)``, or ``(B, in_degree)`` for weights per image.

    Returns:
        ``(B, C, H, W)`` in the dtype of the inputs; half precision is accumulated in float32.

    Raises:
        ValueError: No inputs, or weights that do not fit them.
    """
    if is_transformed():
        return aggregate_reference(inputs, weights)
    check_sum(inputs, weights)
    return _WeightedSum.apply(weights, *inputs)


def aggregate_reference(inputs: list[Tensor], weights: Tensor) -> Tensor:
    """The sum as products and additions, for tracing, compiling (which fuses it) and transforms.

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
    dtype = inputs[0].dtype
    if total.dtype == dtype:  # PyTorch 2.6 exports no cast to the same type
        return total
    return total.to(dtype)


def _columns(weights: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Weights per input, shaped to broadcast against ``(B, C, H, W)``, wide enough to add up in.

    A weight with dimensions widens a half-precision map that it multiplies; a 0-dim one does not.
    """
    if dtype == torch.float16 or dtype == torch.bfloat16:
        dtype = torch.float32
    return list(weights.to(dtype)[..., None, None, None].unbind(-4))


def is_transformed() -> bool:
    """Whether operators are traced or compiled, or a transform of torch.func or forward-mode
    derivatives see them.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return True
    return forward_ad._current_level >= 0 or torch._C._functorch.maybe_current_level() is not None


def check_sum(inputs: Sequence[Tensor], weights: Tensor) -> None:
    """Whether a sum is defined; arguments as for :func:`aggregate`.

    Raises:
        ValueError: It is not.
    """
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
) -> list[Tensor | None]:
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
