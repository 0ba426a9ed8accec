"""The weighted sum of feature maps as a GPU kernel (Triton), y = sum_i w_i x_i or max(y, 0).

Forward reads every map once; backward reads every map once and writes all gradients in the same
pass. Over a :class:`KernelTable` maps are numbers that the kernel reads, so one kernel serves all
in-degrees; over maps in several places there is one per in-degree.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..stages.aggregate import sum_gradients
from .table import Table

__all__ = ['KernelTable', 'kernel_sum']

_BLOCK = 1024  # elements per program
_UNROLL = 4  # maps of a table


def kernel_sum(inputs: Sequence[Tensor], weights: Tensor, relu: bool) -> Tensor:
    """As :func:`timm_topo.stages.aggregate`, unchecked; with ``relu``, max(y, 0)."""
    return _KernelSum.apply(weights, relu, *inputs)


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


@triton.jit
def _table_sum_kernel(
    table, maps, w, extra, y, size, count,
    EXTRA: tl.constexpr, RELU: tl.constexpr, WIDE: tl.constexpr, UNROLL: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One block of y = sum_i w_i table[maps_i]; ``EXTRA``: plus w_count times an extra map."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    total = tl.zeros([BLOCK], WIDE)
    for start in range(0, count, UNROLL):
        for i in tl.static_range(UNROLL):  # so many loads on their way at once
            there = start + i < count
            k = tl.load(maps + start + i, mask=there, other=0)
            w_k = tl.load(w + start + i, mask=there, other=0.0).to(WIDE)
            x = tl.load(table + k * size + at, mask=inside & there, other=0.0)
            total += x.to(WIDE) * w_k
    if EXTRA:
        x = tl.load(extra + at, mask=inside, other=0.0)
        total += x.to(WIDE) * tl.load(w + count).to(WIDE)
    if RELU:
        total = tl.maximum(total, 0.0)
    tl.store(y + at, total.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _table_dots_kernel(
    table, maps, grad, read, place, dots, size, count,
    GATE: tl.constexpr, WIDE: tl.constexpr, UNROLL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One term per block of <table[maps_i], grad>; ``GATE``: grad is 0 where ``read`` is, and
    written to ``place``.
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    g = tl.load(grad + at, mask=inside, other=0.0)
    if GATE:
        is_open = tl.load(read + at, mask=inside, other=0.0) > 0
        g = tl.where(is_open, g, 0.0).to(place.dtype.element_ty)
        tl.store(place + at, g, mask=inside)
    g = g.to(WIDE)
    for start in range(0, count, UNROLL):
        for i in tl.static_range(UNROLL):
            there = start + i < count
            k = tl.load(maps + start + i, mask=there, other=0)
            x = tl.load(table + k * size + at, mask=inside & there, other=0.0)
            dot = tl.sum(x.to(WIDE) * g, 0)
            tl.store(dots + tl.program_id(0) * count + start + i, dot, mask=there)


class KernelTable(Table):
    """A :class:`Table` whose sums and inner products are one kernel each, with one extra map."""

    sums_per_product = 1

    def sum(
        self,
        maps: Sequence[int],
        weights: Tensor,
        extra: Sequence[Tensor] = (),
        relu: bool = False,
    ) -> Tensor:
        y = torch.empty_like(self.flat[0])
        (outside,) = extra or (y,)
        with torch.cuda.device_of(y):
            _table_sum_kernel[self._grid()](
                self.flat, _numbers(tuple(maps), y.device), weights, outside,
                y, len(y), len(maps),
                EXTRA=bool(extra), RELU=relu, WIDE=_type(_wide(y.dtype)), UNROLL=_UNROLL,
                BLOCK=_BLOCK,
            )  # fmt: skip
        return self.shaped(y)

    def dots(self, maps: Sequence[int], other: Tensor) -> Tensor:
        return self._dots(maps, other, other, other, False)

    def replace_by_gradient(
        self, k: int, grad: Tensor, read: Tensor, maps: Sequence[int]
    ) -> Tensor:
        return self._dots(maps, self.as_row(grad), self.as_row(read), self.flat[k], True)

    def _dots(
        self, maps: Sequence[int], grad: Tensor, read: Tensor, place: Tensor, gate: bool
    ) -> Tensor:
        grid, wide = self._grid(), _wide(grad.dtype)
        dots = grad.new_empty(grid[0], len(maps), dtype=wide)
        with torch.cuda.device_of(grad):
            _table_dots_kernel[grid](
                self.flat, _numbers(tuple(maps), grad.device), grad, read, place, dots,
                len(grad), len(maps),
                GATE=gate, WIDE=_type(wide), UNROLL=_UNROLL, BLOCK=_BLOCK,
            )  # fmt: skip
        return dots.sum(0)

    def _grid(self) -> tuple[int]:
        return (triton.cdiv(self.flat.shape[1], _BLOCK),)


@lru_cache(maxsize=4096)
def _numbers(maps: tuple[int, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(maps, dtype=torch.int64, device=device)


class _KernelSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weights: Tensor, relu: bool, *inputs: Tensor) -> Tensor:
        layout = _layout(inputs[0])
        maps = tuple(x.contiguous(memory_format=layout) for x in inputs)
        w = weights.to(_wide(inputs[0].dtype)).contiguous()
        y = torch.empty_like(inputs[0], memory_format=layout)
        size, grid = _grid(y)
        with torch.cuda.device_of(y):
            _forward_kernel[grid](
                maps, w, y, size, _step(w),
                COUNT=len(inputs), RELU=relu, WIDE=_type(w.dtype), BLOCK=_BLOCK,
            )  # fmt: skip
        ctx.relu, ctx.layout, ctx.count = relu, layout, len(inputs)
        # fixed weights have no gradient: then the maps need not be kept
        kept = inputs if ctx.needs_input_grad[0] else ()
        ctx.save_for_backward(weights, y if relu else None, *kept)
        return y

    @staticmethod
    def backward(ctx, grad_y: Tensor):
        weights, y, *maps = ctx.saved_tensors
        needed = ctx.needs_input_grad[2:]
        if torch.is_grad_enabled():  # derivatives of derivatives
            grad = grad_y if y is None else grad_y * (y > 0)
            grad_w, *grads = sum_gradients(grad, weights, maps, needed)
            return grad_w, None, *grads
        grad_y, *maps = (t.contiguous(memory_format=ctx.layout) for t in (grad_y, *maps))
        w = weights.to(_wide(grad_y.dtype)).contiguous()
        size, grid = _grid(grad_y)
        grads = [torch.empty_like(grad_y) for _ in needed] if any(needed) else []
        dots = w.new_empty(grid[1], grid[0], ctx.count if maps else 0)
        with torch.cuda.device_of(grad_y):
            _backward_kernel[grid](
                tuple(maps), tuple(grads), w, grad_y if y is None else y, grad_y, dots, size,
                _step(w),
                COUNT=ctx.count, RELU=ctx.relu, MAPS=bool(grads), DOTS=bool(maps),
                WIDE=_type(w.dtype), BLOCK=_BLOCK,
            )  # fmt: skip
        grad_w = None
        if maps:
            grad_w = dots.sum((0, 1) if w.ndim == 1 else 1).to(weights.dtype)
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


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The type in which sums over maps of ``dtype`` are added up."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _type(dtype: torch.dtype) -> tl.dtype:
    return tl.float64 if dtype == torch.float64 else tl.float32
