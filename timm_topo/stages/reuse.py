"""Memory for tables that waits for the next pass: fresh pages can cost more than the sums."""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ['borrowed', 'give_back', 'lent', 'let_go', 'take']

_FREE: list[Tensor] = []  # of the last training step
_LOCK = threading.Lock()
_OWN = threading.local()  # of inference, of each thread that infers
_KEPT = 32 << 20  # bytes that it may have per thread that computes, to be kept


def take(like: Tensor, shape: tuple[int, int]) -> Tensor:
    """Memory for a table: one that was given back, as fresh pages can cost more than the sums.

    On a GPU PyTorch itself keeps what is freed.
    """
    with _LOCK:
        for k, flat in enumerate(_FREE):
            if flat.shape == shape and flat.dtype == like.dtype and flat.device == like.device:
                return _FREE.pop(k)
        _FREE.clear()  # other shapes: what is left of those before goes
    return like.new_empty(shape)


def give_back(flat: Tensor) -> None:
    """Keep the memory of a table that training no longer needs, on CPU."""
    if flat.device.type == 'cpu':
        with _LOCK:
            _FREE.append(flat)


@contextmanager
def lent(like: Tensor, size: int) -> Iterator[Tensor]:
    """Memory for the moment, ``(size,)``: of a table that waits, where one is large enough."""
    with _LOCK:
        fitting = (
            k
            for k, flat in enumerate(_FREE)
            if flat.numel() >= size and flat.dtype == like.dtype and flat.device == like.device
        )
        k = next(fitting, None)
        table = None if k is None else _FREE.pop(k)
    if table is None:
        yield like.new_empty(size)
    else:
        yield table.view(-1)[:size]
        give_back(table)


def let_go() -> None:
    """Free the tables that wait for the next training step."""
    with _LOCK:
        _FREE.clear()


@contextmanager
def borrowed(like: Tensor, shape: tuple[int, int]) -> Iterator[Tensor]:
    """Memory for a table of inference: the same for all of a thread, unless it is large."""
    size = math.prod(shape)
    flat = vars(_OWN).pop('flat', None)
    kind = like.dtype, like.device
    if flat is None or flat.numel() < size or (flat.dtype, flat.device) != kind:
        with torch.inference_mode(False):
            flat = like.new_empty(size)
    yield flat[:size].view(shape)
    if like.device.type == 'cpu' and flat.nbytes <= _KEPT * torch.get_num_threads():
        _OWN.flat = flat
