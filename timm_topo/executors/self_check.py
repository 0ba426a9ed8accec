"""Whether a stage in a table computes the equation on a device, found out before it is used."""

import warnings
from functools import lru_cache

import torch
from torch import Tensor, nn

from ..connectivity import build_connectivity
from ..nodes import SepConvNode
from ..stages import GraphStage
from ..wiring import Wiring

__all__ = ['agrees_on']

_LAYOUTS = {False: torch.contiguous_format, True: torch.channels_last}


@lru_cache
def agrees_on(
    device: torch.device, dtype: torch.dtype, channels_last: bool, autocast: bool
) -> bool:
    """Whether a small stage in a table is the equation on a device; if not, it warns.

    Beside our kernels a table rests on operators of PyTorch that write to given memory. Every kind
    of device has other ones, in every precision and layout.

    Args:
        device: The device.
        dtype: Of the maps; if half precision without autocast, of parameters too, in inference.
        channels_last: Whether channels come last in memory.
        autocast: Whether ``dtype`` is that of autocast.

    Raises:
        torch.OutOfMemoryError: No memory for it now.
    """
    exact = dtype in (torch.float32, torch.float64)
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.device('cpu'):
            mine, reference = _results(
                device, dtype, channels_last, autocast, training=exact or autocast
            )
        most = 1e-3 if exact else 0.1
        if all((a - b).norm() <= most * b.norm() for a, b in zip(mine, reference)):
            return True
        why = 'in one table they would compute something else there'
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # whatever an operator, Triton or the driver raises
        why = f'in one table they fail there ({error})'
    warnings.warn(
        f'stages in {dtype} on {device} run node by node, which takes more time and memory: {why}',
        stacklevel=2,
    )
    return False


def _results(
    device: torch.device, dtype: torch.dtype, channels_last: bool, autocast: bool, training: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and gradients of a small stage, in a table and by the equation."""
    from .recompute import Recompute
    from .table_stage import TableForward

    own, layout = torch.float32 if autocast else dtype, _LAYOUTS[channels_last]
    stage, x = _small_stage(device, own, layout), _noise(4, 8, 12, 12)
    x = x.to(device, dtype, memory_format=layout).requires_grad_()
    found = [], []
    for train in (False, True) if training else (False,):  # training changes the statistics
        table = Recompute() if train else TableForward()
        stage.train(train)
        for run, values in ((table.run, found[0]), (_equation, found[1])):
            with (
                torch.set_grad_enabled(train),
                torch.autocast(device.type, dtype if autocast else None, enabled=autocast),
            ):
                output = run(stage, x)
            values.append(output)
            if train:
                toward = torch.linspace(-1, 1, output.numel(), device=device)
                loss = (output * toward.view_as(output)).sum()
                values += torch.autograd.grad(loss, [x, *stage.parameters()])
    return found


def _equation(stage: GraphStage, x: Tensor) -> Tensor:
    return stage.run(x)[0][-1]


def _small_stage(
    device: torch.device, dtype: torch.dtype, layout: torch.memory_format
) -> GraphStage:
    """Four nodes without an entry, drawn without the global random numbers."""
    wiring = Wiring(4, [(s, t) for t in range(4) for s in range(t)])
    nodes = [SepConvNode(8, 8, device='meta') for _ in range(2)]
    stage = GraphStage(wiring, build_connectivity('alpha', wiring), nn.Identity(), nodes)
    stage.to_empty(device=device).to(dtype, memory_format=layout)
    draw = torch.Generator().manual_seed(0)
    for tensor in stage.state_dict(keep_vars=True).values():
        drawn = torch.rand(tensor.shape, generator=draw)
        tensor.data.copy_(drawn - 0.5 if tensor.ndim == 4 else drawn + 0.5)
    return stage


def _noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))
