"""Every edge weighs what it was given, by default one: the rule-based baselines, frozen alphas."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..wiring import Wiring
from .base import StaticConnectivity, register_connectivity


@register_connectivity('fixed')
class FixedConnectivity(StaticConnectivity):
    """a_ji = constant. Kept as a buffer, so that weights are saved, loaded and never trained.

    Args:
        wiring: The wiring.
        values: Weights ``(E,)`` in the order of ``wiring.edges``; one by default.

    Raises:
        ValueError: Another number of values than edges.
    """

    def __init__(self, wiring: Wiring, values: Sequence[float] | Tensor | None = None):
        super().__init__(wiring)
        if values is None:
            initial = torch.ones(self.num_edges)
        else:
            initial = torch.as_tensor(values).detach().clone()
        if initial.shape != (self.num_edges,):
            raise ValueError(
                f'values must be ({self.num_edges},) for {wiring}, got {tuple(initial.shape)}'
            )
        self.register_buffer('alpha', initial)

    def with_weights(self, wiring: Wiring, weights: Sequence[float]) -> 'FixedConnectivity':
        values = torch.as_tensor(weights, dtype=torch.float64)
        return type(self)(wiring, values.to(self.alpha)).train(self.training)

    def reset_parameters(self) -> None:
        """One everywhere: values given at construction are weights, not an initialisation."""
        with torch.no_grad():
            self.alpha.fill_(1.0)

    def squash(self, alpha: Tensor) -> Tensor:
        return alpha
