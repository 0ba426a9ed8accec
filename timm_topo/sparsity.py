"""L1 on edge weights, uniform or growing with log in-degree (TopoNet, Eqs. 6 to 8)."""

import math
from functools import lru_cache

import torch
from torch import Tensor, nn

from .checks import check_number
from .stages import Stage, graph_stages
from .wiring import Wiring

__all__ = ['SPARSITY', 'check_sparsity', 'check_sparsity_weight', 'edge_penalty', 'sparsity_loss']

#: Kinds of sparsity: penalty of an edge, given the in-degree of its target.
SPARSITY = {
    'none': lambda in_degree: 0.0,
    'uniform': lambda in_degree: 1.0,  # Eq. 7
    'adaptive': lambda in_degree: math.log(in_degree),  # Eq. 8; a sole in-edge is free
}


def check_sparsity(kind: str) -> str:
    """``kind``, if it is known.

    Raises:
        ValueError: It is not.
    """
    if kind not in SPARSITY:
        raise ValueError(f'unknown sparsity {kind!r}; known: {", ".join(SPARSITY)}')
    return kind


def check_sparsity_weight(weight: float) -> float:
    """``weight``, if it can be a lambda.

    Raises:
        TypeError: It is no number.
        ValueError: It is negative or not finite.
    """
    check_number('sparsity_weight', weight)
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f'sparsity_weight must be finite and >= 0, got {weight}')
    return float(weight)


def edge_penalty(wiring: Wiring, kind: str, dtype: torch.dtype | None = None) -> Tensor:
    """Penalty per edge ``(E,)`` in the order of ``wiring.edges``.

    >>> edge_penalty(Wiring(3, ((0, 1), (0, 2), (1, 2))), 'adaptive')
    tensor([0.0000, 0.6931, 0.6931])
    """
    penalty = SPARSITY[check_sparsity(kind)]
    values = [penalty(wiring.in_degrees[target]) for _, target in wiring.edges]
    return torch.tensor(values, dtype=dtype)


def sparsity_loss(
    model: nn.Module, kind: str | None = None, adjacency: dict[str, Tensor] | None = None
) -> Tensor:
    """sum_e w_e |a_e| over all graph stages of ``model``, a scalar; not yet times lambda.

    Args:
        model: Any module with graph stages.
        kind: One of :data:`SPARSITY`; by default the model's own ``sparsity``.
        adjacency: For weights that depend on the image, those of a batch, ``(B, N, N)`` by stage
            name, as from :func:`timm_topo.executors.record_adjacency`; their mean over the batch
            counts.

    Raises:
        RuntimeError: The weights depend on the image and ``adjacency`` is not given.
        ValueError: Unknown kind, or ``model`` has no graph stage.
    """
    kind = model.sparsity if kind is None else check_sparsity(kind)
    stages = graph_stages(model)
    if kind == 'none':
        return next(model.parameters(), torch.zeros(())).new_zeros(())
    return sum(_stage_loss(s, kind, (adjacency or {}).get(n)) for n, s in stages.items())


def _stage_loss(stage: Stage, kind: str, adjacency: Tensor | None) -> Tensor:
    if stage.needs_context and adjacency is not None:
        sources, targets = zip(*stage.wiring.edges)
        weights = adjacency[:, targets, sources].abs().mean(0)
    else:
        weights = stage.connectivity.edge_weights()
    penalty = _penalty_on(stage.wiring, kind, weights.device, weights.dtype)
    return (penalty * weights.abs()).sum()


@lru_cache(maxsize=256)  # asked for in every training step: no copy to the device each time
def _penalty_on(wiring: Wiring, kind: str, device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):  # an inference tensor would be of no use in training
        return edge_penalty(wiring, kind, dtype).to(device)
