"""Memory layout: on CPU convolutions and batch norm are fastest with channels last."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..stages import Stage

__all__ = ['in_best_layout', 'is_channels_last']


def in_best_layout(stage: Stage, x: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
    """``run(x)``, on CPU with channels last inside; the output lies in memory as x."""
    if x.device.type != 'cpu' or _damages_memory(stage):
        return run(x)
    out = run(x.contiguous(memory_format=torch.channels_last))
    return out.contiguous() if x.is_contiguous() else out


def is_channels_last(x: Tensor) -> bool:
    """Whether channels come last in memory."""
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def _damages_memory(stage: Stage) -> bool:
    """Whether a gradient with channels last would damage memory.

    The gradient of a pointwise convolution with a stride and fewer than 8 input channels does, on
    CPUs without AVX-512 (oneDNN of PyTorch 2.14: its kernel writes behind the gradient).
    """
    return torch.is_grad_enabled() and any(
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and module.stride != (1, 1)
        and module.in_channels < 8
        for module in stage.modules()
    )
