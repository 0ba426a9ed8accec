"""Sums over maps as Triton kernels: where they apply, and graphs that are run node by node."""

import os
import warnings
from functools import lru_cache

import torch
from torch import Tensor

from ..stages import GraphStage, InEdges, Offset, Stage, is_eager, register
from ..stages.aggregate import check_sum
from ..watched import watched_any
from .plain import is_layered
from .reference import StepExecutor
from .table import Table

__all__ = ['kernels_apply', 'make_table', 'set_triton_kernels']

_enabled: bool | None = None


def set_triton_kernels(enable: bool | None = True) -> None:
    """Whether sums over maps on a GPU are Triton kernels, the ReLU after them folded in.

    Args:
        enable: By default (None) they are on NVIDIA GPUs, where Triton works.

    Raises:
        ImportError: They are to be used, and Triton is missing or older than 3.3.
    """
    global _enabled
    if enable:
        _import_kernels()
    _enabled = enable


def kernels_apply(x: Tensor) -> bool:
    """Whether sums over maps like ``x`` are Triton kernels.

    Triton's interpreter (``TRITON_INTERPRET=1``) takes maps on CPU too, where they are asked for.
    """
    if _enabled is False or not is_eager(x) or not x.numel():
        return False
    if x.is_cuda:
        return bool(_enabled) or _work_on(x.device)
    return bool(_enabled) and x.device.type == 'cpu' and os.environ.get('TRITON_INTERPRET') == '1'


def make_table(flat: Tensor, shape: torch.Size, channels_last: bool) -> Table:
    """A :class:`Table` whose sums are kernels where these apply."""
    kind = _import_kernels().KernelTable if kernels_apply(flat) else Table
    return kind(flat, shape, channels_last)


class KernelSums(StepExecutor):
    """The equation with one kernel per sum, for graphs that fit no table."""

    name = 'kernels'
    rank = 10

    def objection(self, stage: Stage, x: Tensor) -> str:
        if not kernels_apply(x):
            return 'no Triton kernels on this device'
        return super().objection(stage, x)

    def step(self, stage: GraphStage, node: int, inputs: list[Tensor], into: InEdges) -> Tensor:
        check_sum(inputs, into.weights)
        last = node == stage.wiring.num_nodes - 1
        module, offset = None if last else stage.nodes[node - 1], stage.offset(node)
        relu = not isinstance(offset, Offset) and _starts_with_relu(module)
        total = offset(_import_kernels().kernel_sum(inputs, into.weights, relu))
        if not relu:
            return total if last else module(total)
        for layer in (*module.layers().convs, module.layers().norm):
            total = layer(total)
        return total


def _starts_with_relu(node) -> bool:
    """Whether a node is its layers, a ReLU first."""
    if not is_layered(node):
        return False
    act = node.layers().act
    return type(act) is torch.nn.ReLU and not watched_any((node, act))


@lru_cache
def _work_on(device: torch.device) -> bool:
    """Whether the kernels run: Triton compiles them, for which it needs a C compiler."""
    if torch.version.hip:  # not tried
        return False
    try:
        x = torch.ones(1, 1, 1, 1, device=device)
        _import_kernels().kernel_sum([x], torch.ones(1, device=device), False)
    except Exception as error:  # whatever Triton, its compiler or the driver raises
        warnings.warn(
            f'sums over maps on {device} run without Triton, which is slower: {error} '
            '(set_triton_kernels(False) says that this is meant)',
            stacklevel=3,
        )
        return False
    return True


def _import_kernels():
    try:
        import triton

        if tuple(map(int, triton.__version__.split('.')[:2])) < (3, 3):
            raise ImportError(f'Triton is {triton.__version__}')
        from . import triton_kernels
    except ImportError as error:
        raise ImportError(f'{error}: the kernels need Triton 3.3 or newer') from None
    return triton_kernels


register(KernelSums())
