"""Memory for tables, kept by each thread for its next pass: fresh pages can cost more than sums.

On a GPU PyTorch itself keeps what is freed.
"""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ['acquire', 'clear', 'inference_memory', 'release', 'scratch']

_KEPT_IN_INFERENCE = 32 << 20  # bytes per computing thread


class _Pool(threading.local):
    def __init__(self):
        self.free: list[Tensor] = []  # tables of the last training step
        self.inference: Tensor | None = None


_POOL = _Pool()


def acquire(like: Tensor, shape: tuple[int, int]) -> Tensor:
    """Memory for a table of training, a released one if one fits.

    Args:
        like: A tensor of the same type and device.
        shape: Maps, values per map.
    """
    flat = _take(lambda flat: flat.shape == shape, like)
    if flat is None:
        _POOL.free.clear()  # tables of other shapes have no more use
        return like.new_empty(shape)
    return flat


def release(flat: Tensor) -> None:
    """Keep the memory of a table, on CPU, for the next :func:`acquire` in this thread."""
    if flat.device.type == 'cpu':
        _POOL.free.append(flat)


@contextmanager
def scratch(like: Tensor, size: int) -> Iterator[Tensor]:
    """Memory for a moment, ``(size,)``: of a released table, if one is large enough."""
    table = _take(lambda flat: flat.numel() >= size, like)
    if table is None:
        yield like.new_empty(size)
    else:
        yield table.view(-1)[:size]
        release(table)


def clear() -> None:
    """Free the tables that this thread keeps for its next training step."""
    _POOL.free.clear()


@contextmanager
def inference_memory(like: Tensor, shape: tuple[int, int]) -> Iterator[Tensor]:
    """Memory for a table of inference: the same for all tables of a thread, unless it is large.

    Args:
        like: A tensor of the same type and device.
        shape: Maps, values per map.
    """
    size = math.prod(shape)
    flat, _POOL.inference = _POOL.inference, None
    if flat is None or flat.numel() < size or not _alike(flat, like):
        with torch.inference_mode(False):
            flat = like.new_empty(size)
    yield flat[:size].view(shape)
    if like.device.type == 'cpu' and flat.nbytes <= _KEPT_IN_INFERENCE * torch.get_num_threads():
        _POOL.inference = flat


def _take(fits, like: Tensor) -> Tensor | None:
    for k, flat in enumerate(_POOL.free):
        if _alike(flat, like) and fits(flat):
            return _POOL.free.pop(k)
    return None


def _alike(flat: Tensor, like: Tensor) -> bool:
    return flat.dtype == like.dtype and flat.device == like.device
