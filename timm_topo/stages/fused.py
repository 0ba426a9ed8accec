"""The weighted sum of feature maps as a GPU kernel (Triton), y = sum_i w_i x_i or max(y, 0).

Forward reads every map once; backward reads every map once and writes all gradients in the same
pass. Optional: :func:`timm_topo.stages.set_fused_aggregate` turns it on.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ['fused_sum']

_BLOCK = 1024  # elements per program


def fused_sum(inputs: Sequence[Tensor], weights: Tensor, relu: bool) -> Tensor:
    """As :func:`timm_topo.stages.aggregate`, which checks what it gets.

    Gradients cannot be differentiated again.
    """
    return _FusedSum.apply(weights, relu, *inputs)


@triton.jit
def _forward_kernel(
    xs, w, y, size, w_step,
    COUNT: tl.constexpr, RELU: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One block of one image; ``w_step``: from the weights of one image to those of the next."""
    image = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    total = tl.zeros([BLOCK], WIDE)
    for i in tl.static_range(COUNT):
        x = tl.load(xs[i] + image * size + at, mask=inside, other=0.0)
        total += x.to(WIDE) * tl.load(w + image * w_step + i)
    if RELU:
        total = tl.maximum(total, 0.0)
    tl.store(y + image * size + at, total.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _backward_kernel(
    xs, grads, w, y, grad_y, dots, size, w_step,
    COUNT: tl.constexpr, RELU: tl.constexpr, MAPS: tl.constexpr, DOTS: tl.constexpr,
    WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of the maps (``MAPS``), and one term of the weights' per block (``DOTS``)."""
    image = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    grad = tl.load(grad_y + image * size + at, mask=inside, other=0.0).to(WIDE)
    if RELU:
        is_open = tl.load(y + image * size + at, mask=inside, other=0.0) > 0
        grad = tl.where(is_open, grad, 0.0)
    part = image * tl.num_programs(0) + tl.program_id(0)
    for i in tl.static_range(COUNT):
        if MAPS:
            grad_x = grad * tl.load(w + image * w_step + i)
            place = grads[i] + image * size + at
            tl.store(place, grad_x.to(grad_y.dtype.element_ty), mask=inside)
        if DOTS:
            x = tl.load(xs[i] + image * size + at, mask=inside, other=0.0).to(WIDE)
            tl.store(dots + part * COUNT + i, tl.sum(x * grad, 0))


class _FusedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weights: Tensor, relu: bool, *inputs: Tensor) -> Tensor:
        layout = _layout(inputs[0])
        inputs = tuple(x.contiguous(memory_format=layout) for x in inputs)
        wide = torch.float64 if inputs[0].dtype == torch.float64 else torch.float32
        w = weights.to(wide).contiguous()
        y = torch.empty_like(inputs[0], memory_format=layout)
        size, grid = _grid(y)
        _forward_kernel[grid](
            inputs, w, y, size, _step(w),
            COUNT=len(inputs), RELU=relu, WIDE=_type(wide), BLOCK=_BLOCK,
        )  # fmt: skip
        ctx.relu, ctx.layout, ctx.count, ctx.dtype = relu, layout, len(inputs), weights.dtype
        # fixed weights have no gradient: then the maps need not be kept
        maps = inputs if ctx.needs_input_grad[0] else ()
        ctx.save_for_backward(w, y if relu else None, *maps)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y: Tensor):
        w, y, *maps = ctx.saved_tensors
        grad_y = grad_y.contiguous(memory_format=ctx.layout)
        size, grid = _grid(grad_y)
        needed = ctx.needs_input_grad[2:]
        grads = [torch.empty_like(grad_y) for _ in needed] if any(needed) else []
        dots = w.new_empty(grid[1], grid[0], ctx.count if maps else 0)
        _backward_kernel[grid](
            tuple(maps), tuple(grads), w, grad_y if y is None else y, grad_y, dots, size, _step(w),
            COUNT=ctx.count, RELU=ctx.relu, MAPS=bool(grads), DOTS=bool(maps),
            WIDE=_type(w.dtype), BLOCK=_BLOCK,
        )  # fmt: skip
        grad_w = None
        if maps:
            grad_w = dots.sum((0, 1) if w.ndim == 1 else 1).to(ctx.dtype)
        grads = [g if n else None for g, n in zip(grads, needed)] or [None] * ctx.count
        return grad_w, None, *grads


def _layout(x: Tensor) -> torch.memory_format:
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def _grid(x: Tensor) -> tuple[int, tuple[int, int]]:
    """Elements of an image, and programs: blocks of an image, images."""
    size = x[0].numel()
    return size, (triton.cdiv(size, _BLOCK), len(x))


def _step(weights: Tensor) -> int:
    return weights.shape[1] if weights.ndim == 2 else 0


def _type(dtype: torch.dtype) -> tl.dtype:
    return tl.float64 if dtype == torch.float64 else tl.float32
