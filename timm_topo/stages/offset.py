"""Constants in weighted sums: what removed nodes without in-edges emitted."""

import torch
from torch import Tensor, nn

__all__ = ['Offset', 'TakesOffsets', 'merge', 'compact']


class Offset(nn.Module):
    """x + c for maps x of any size, where c is the same for every image.

    c is stored as ``value`` ``(C, h, w)``. In a map of another size, its outer rows and columns
    stay at their distance from the border and the middle one is repeated: what convolutions make
    of a constant, zeros beyond the border.

    Args:
        value: ``(C, h, w)``, as from :func:`compact`. A buffer: training leaves it as it is.
    """

    value: Tensor

    def __init__(self, value: Tensor):
        super().__init__()
        self.height, self.width = value.shape[1:]
        self.register_buffer('value', value)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> the same shape."""
        return x + _fitted(self.value, (self.height, self.width), x)

    def extra_repr(self) -> str:
        return f'{tuple(self.value.shape)}'


def _fitted(value: Tensor, stored: tuple[int, int], x: Tensor) -> Tensor:
    """``value``, ``stored`` rows and columns, in the size and type of maps ``x``: ``(C, H, W)``."""
    value = value.to(x.dtype)
    in_dynamo = torch.compiler.is_dynamo_compiling()  # where free sizes pass for integers too
    for dim, rows, line in zip((1, 2), stored, (x[0, 0, :, 0], x[0, 0, 0])):
        size = x.shape[dim + 1]
        if rows > 1 and isinstance(size, int) and not in_dynamo:
            value = _stretched(value, dim, rows, size)
        elif rows > 1:
            value = value.index_select(dim, _places(line, rows))
    return value


torch.fx.wrap('_fitted')  # a leaf for symbolic tracing: it looks at shapes


def _stretched(value: Tensor, dim: int, stored: int, size: int) -> Tensor:
    """``value`` with ``size`` rows along ``dim``, in slices: a constant where sizes are fixed."""
    half, near, far = (stored + 1) // 2, (size + 1) // 2, size // 2
    shape = list(value.shape)
    parts = [value.narrow(dim, 0, min(near, half))]
    for middle, rows in ((half - 1, near - half), (stored // 2, far - half)):
        shape[dim] = max(0, rows)
        parts.append(value.narrow(dim, middle, 1).expand(shape))
    kept = min(far, half)
    return torch.cat([*parts, value.narrow(dim, stored - kept, kept)], dim)


def _places(line: Tensor, stored: int) -> Tensor:
    """Which of ``stored`` rows stands for each place of a line, ``(H,)``.

    Sizes that only running tells are counted here, in floats: integers are not clamped in ONNX
    before opset 12.
    """
    place = torch.ones_like(line, dtype=torch.float32).cumsum(0) - 1
    size = place.shape[0]
    near_start = place.clamp(max=(stored - 1) // 2)
    near_end = (place + (stored - size)).clamp(min=stored // 2)
    return torch.where(2 * place < size, near_start, near_end).long()


def merge(one: Tensor, other: Tensor) -> Tensor:
    """The ``value`` of two offsets together."""
    larger = [max(sizes) for sizes in zip(one.shape, other.shape)]
    zeros = one.new_zeros(1, *larger)
    return Offset(other)(Offset(one)(zeros))[0]


def compact(constant: Tensor) -> Tensor:
    """The smallest ``(C, h, w)`` that stands for a map ``(C, H, W)`` (see :class:`Offset`).

    Differences of the size of rounding do not count.

    >>> border = torch.ones(1, 7, 7)
    >>> border[:, 1:-1, 1:-1] = 2
    >>> compact(border)
    tensor([[[1., 1., 1.],
             [1., 2., 1.],
             [1., 1., 1.]]])
    """
    tolerance = 64 * torch.finfo(constant.dtype).eps * constant.abs().max()
    for dim in (1, 2):
        size = constant.shape[dim]
        for border in range((size + 1) // 2):
            middle = constant.narrow(dim, border, size - 2 * border)
            if (middle.amax(dim) - middle.amin(dim) <= tolerance).all():
                parts = [constant.narrow(dim, 0, border + 1)]
                parts.append(constant.narrow(dim, size - border, border))
                constant = torch.cat(parts, dim)
                break
    return constant.clone()


class TakesOffsets(nn.Module):
    """Mixin of stages: a constant per node, added to its weighted sum; at first none.

    Constants are part of the state and of no description: loading a state makes place for them.

    Attributes:
        offsets: :class:`Offset` or identity by computing node.
        output_offset: The same of the stage output.
    """

    def clear_offsets(self) -> None:
        """Add nothing to weighted sums."""
        count = self.wiring.num_nodes - 2
        self.offsets = nn.ModuleList(nn.Identity() for _ in range(count)).train(self.training)
        self.output_offset = nn.Identity().train(self.training)

    def offset(self, node: int) -> nn.Module:
        """The constant of ``node`` (from 1 on), or the identity."""
        last = self.wiring.num_nodes - 1
        return self.output_offset if node == last else self.offsets[node - 1]

    def set_offset(self, node: int, value: Tensor) -> None:
        """Replace the constant added to the sum of ``node``.

        Args:
            node: From 1 on.
            value: ``(C, h, w)``, see :class:`Offset`.
        """
        offset = Offset(value).train(self.training)
        if node == self.wiring.num_nodes - 1:
            self.output_offset = offset
        else:
            self.offsets[node - 1] = offset

    def add_offset(self, node: int, value: Tensor) -> None:
        """Add ``value`` to the constant of ``node``; arguments as for :meth:`set_offset`."""
        offset = self.offset(node)
        self.set_offset(node, merge(offset.value, value) if isinstance(offset, Offset) else value)

    @property
    def has_offsets(self) -> bool:
        """Whether any constant is added."""
        return any(isinstance(one, Offset) for one in (*self.offsets, self.output_offset))

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        place = next(self.parameters(), torch.empty(0))
        names = {f'{prefix}output_offset.value': self.wiring.num_nodes - 1}
        names |= {f'{prefix}offsets.{i}.value': i + 1 for i in range(len(self.offsets))}
        for name in names.keys() & state_dict.keys():
            value = torch.empty_like(state_dict[name], device=place.device)
            self.set_offset(names[name], value)
        super()._load_from_state_dict(state_dict, prefix, *args)
