"""The maps of a stage, one after another in memory, and weighted sums over them."""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ['Table']

aten = torch.ops.aten


class Table:
    """K maps ``(B, C, H, W)``, on CPU cut into rows of one length, which fit caches.

    Args:
        flat: The memory, ``(K, B * C * H * W)``.
        shape: ``(B, C, H, W)``.
        channels_last: Whether channels come last in memory.
    """

    def __init__(self, flat: Tensor, shape: torch.Size, channels_last: bool):
        self.flat, self.shape, self.channels_last = flat, shape, channels_last

    def __getitem__(self, k: int) -> Tensor:
        return self.shaped(self.flat[k])

    @property
    def sums_per_product(self) -> int:
        """How many sums one product of matrices computes: several where products are exact, and
        MKL's, the only library measured.
        """
        highest = torch.get_float32_matmul_precision() == 'highest'
        exact = highest or self.flat.dtype == torch.float64
        return 4 if exact and torch.backends.mkl.is_available() else 1

    def shaped(self, flat: Tensor) -> Tensor:
        """``(B, C, H, W)`` in the layout of this table."""
        if self.channels_last:
            b, c, h, w = self.shape
            return flat.view(b, h, w, c).permute(0, 3, 1, 2)
        return flat.view(self.shape)

    def in_layout(self, x: Tensor) -> Tensor:
        """``x`` ``(B, C, H, W)`` in the layout of this table, a copy only if it has another."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return x.contiguous(memory_format=layout)

    def as_row(self, x: Tensor) -> Tensor:
        """The values of a map ``(B, C, H, W)`` in the order of this table."""
        return (x.permute(0, 2, 3, 1) if self.channels_last else x).reshape(-1)

    def sum(
        self,
        maps: Sequence[int],
        weights: Tensor,
        extra: Sequence[Tensor] = (),
        relu: bool = False,
    ) -> Tensor:
        """Weighted sum of some maps: each is read once, and added up in registers.

        Args:
            maps: Their numbers.
            weights: One per map, followed by one per extra map.
            extra: Maps outside the table, flat or cut into rows.
            relu: Whether to return max(sum, 0).

        Returns:
            ``(B, C, H, W)``.
        """
        weights = weights.to(self.flat.dtype)
        outside = list(zip(extra, weights[len(maps) :]))
        if maps:
            rows = self.flat.view(-1, _row_length(self.flat.shape[1]))
            per_map = len(rows) // len(self.flat)
            spread = weights[: len(maps)].expand(per_map, -1).contiguous()
            numbers, starts = _row_numbers(tuple(maps), per_map)
            total = F.embedding_bag(
                numbers, rows, starts, mode='sum', per_sample_weights=spread.view(-1)
            ).view(-1)
        else:
            part, weight = outside.pop(0)
            total = (part * weight).view(-1)
        for part, weight in outside:
            total.view(part.shape).add_(part, alpha=weight.item())
        return self.shaped(total.relu_() if relu else total)

    def sums(self, weights: Tensor, first: int, place: Tensor) -> list[Tensor]:
        """M weighted sums as one product of matrices: each map is read once for all of them.

        A value that is not finite reaches all sums, also through a weight of 0.

        Args:
            weights: ``(M, K')``, of the maps ``first .. first + K' - 1``.
            first: The first map.
            place: Memory for M maps.

        Returns:
            M maps, cut into rows that lie apart.
        """
        count, maps = weights.shape
        rows = self._rows(first, first + maps)
        out = place[: count * self.flat.shape[1]].view(len(rows), count, rows.shape[2])
        torch.bmm(weights.to(rows.dtype).expand(len(rows), -1, -1), rows, out=out)
        return list(out.unbind(1))

    def dots(self, maps: Sequence[int], other: Tensor) -> Tensor:
        """Inner products of some maps with the map ``other``, which is flat."""
        products = [torch.dot(self.flat[k], other) for k in maps]
        return torch.stack(products) if products else other.new_empty(0)

    def inner_products(self, first: int, stop: int) -> Tensor:
        """Inner products ``(stop - first, first)`` of the maps ``first .. stop - 1`` with the maps
        before them, as one product of matrices.
        """
        return torch.bmm(self._rows(first, stop), self._rows(0, first).mT).sum(0)

    def _rows(self, first: int, stop: int) -> Tensor:
        """The maps ``first .. stop - 1``, row by row: ``(rows, stop - first, row length)``."""
        length = _row_length(self.flat.shape[1])
        return self.flat[first:stop].unflatten(1, (-1, length)).transpose(0, 1)

    def replace_by_gradient(
        self, k: int, grad: Tensor, read: Tensor, maps: Sequence[int]
    ) -> Tensor:
        """Write ``grad``, where ``read`` is positive and else 0, in the place of map ``k``.

        Args:
            k: The place.
            grad: ``(B, C, H, W)``.
            read: ``(B, C, H, W)``.
            maps: Numbers of the maps for the inner products.

        Returns:
            Inner products of ``maps`` with the gradient written.
        """
        aten.threshold_backward.grad_input(grad, read, 0, grad_input=self[k])
        return self.dots(maps, self.flat[k])


@lru_cache(maxsize=1024)
def _row_numbers(maps: tuple[int, ...], per_map: int) -> tuple[Tensor, Tensor]:
    """Rows of all bags, one of each map in every bag; and the starts of the bags."""
    with torch.inference_mode(False), torch.device('cpu'):
        numbers = torch.arange(per_map)[:, None] + torch.tensor(maps) * per_map
        return numbers.view(-1), torch.arange(0, numbers.numel(), len(maps))


@lru_cache(maxsize=256)
def _row_length(size: int, most: int = 4096) -> int:
    """The longest row of at most ``most`` that divides ``size``."""
    return (
        math.gcd(size, most)
        if size % most == 0
        else max(d for d in range(1, min(size, most) + 1) if size % d == 0)
    )
