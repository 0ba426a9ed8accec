"""Whether a stage in a table computes what it should on a device, found out before it is used."""

import warnings
from collections.abc import Sequence
from functools import lru_cache, partial

import torch
from torch import Tensor, nn

from ..wiring import Wiring
from .aggregate import aggregate_reference
from .lean import Chain, in_weights, lean_stage

__all__ = ['agrees_on']

_LAYOUTS = {False: torch.contiguous_format, True: torch.channels_last}


@lru_cache
def agrees_on(device: torch.device, dtype: torch.dtype, last: bool, autocast: bool) -> bool:
    """Whether a small stage in a table is the equation on a device; if not, it warns.

    Beside our kernels a table rests on operators of PyTorch that write to memory they are given,
    and these are other ones on every kind of device, in every precision and layout.

    Args:
        device: Where.
        dtype: Of the maps; if half precision without autocast, of parameters too, in inference.
        last: Whether channels come last in memory.
        autocast: Whether ``dtype`` is that of autocast.

    Raises:
        torch.OutOfMemoryError: No memory for it now.
    """
    exact = dtype in (torch.float32, torch.float64)
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.device('cpu'):
            mine, reference = _tried(device, dtype, last, autocast, training=exact or autocast)
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


def _tried(
    device: torch.device, dtype: torch.dtype, last: bool, autocast: bool, training: bool
) -> tuple[list[Tensor], ...]:
    """Outputs and gradients of a small stage, in a table and edge by edge."""
    own = torch.float32 if autocast else dtype
    draw, layout = torch.Generator().manual_seed(0), _LAYOUTS[last]
    chains = []
    for _ in range(2):
        depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False, device='meta')
        pointwise = nn.Conv2d(8, 8, 1, bias=False, device='meta')
        chains.append(Chain((depthwise, pointwise), nn.BatchNorm2d(8, device='meta')))
    layers = nn.ModuleList(layer for chain in chains for layer in (*chain.convs, chain.bn))
    layers.to_empty(device=device).to(own, memory_format=layout)
    for tensor in layers.state_dict(keep_vars=True).values():
        drawn = torch.rand(tensor.shape, generator=draw)
        tensor.data.copy_(drawn - 0.5 if tensor.ndim == 4 else drawn + 0.5)
    x_0 = torch.randn(4, 8, 12, 12, generator=draw).to(device, dtype, memory_format=layout)
    weights = torch.rand(6, generator=draw).to(device, own)
    wiring = Wiring(4, [(s, t) for t in range(4) for s in range(t)])
    leaves = [weights.requires_grad_(), x_0.requires_grad_(), *layers.parameters()]
    found = [], []
    for train in (False, True) if training else (False,):  # training changes what evaluation uses
        layers.train(train)
        for run, values in zip((partial(lean_stage, raw=False), _edge_by_edge), found):
            with (
                torch.set_grad_enabled(train),
                torch.autocast(device.type, dtype if autocast else None, enabled=autocast),
            ):
                output = run(wiring, chains, weights, x_0, x_0)
            values.append(output)
            if train:
                toward = torch.linspace(-1, 1, output.numel(), device=device)
                loss = (output * toward.view_as(output)).sum()
                values += torch.autograd.grad(loss, leaves)
    return found


def _edge_by_edge(
    wiring: Wiring, chains: Sequence[Chain], weights: Tensor, x: Tensor, x_0: Tensor
) -> Tensor:
    maps = [x_0]
    for node in range(1, wiring.num_nodes):
        y = aggregate_reference(maps, in_weights(wiring, weights, node))
        if node < wiring.num_nodes - 1:
            chain = chains[node - 1]
            maps.append(nn.Sequential(nn.ReLU(), *chain.convs, chain.bn)(y))
    return y
