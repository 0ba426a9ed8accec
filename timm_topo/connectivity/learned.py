"""One learned weight per edge: plain (TopoNet, Eq. 1), tanh (Janik & Nowak), sigmoid (RandWire)."""

import math

import torch
from torch import Tensor, nn

from ..wiring import Wiring
from .base import StaticConnectivity, register_connectivity


class LearnedConnectivity(StaticConnectivity):
    """Partial contract: one parameter per edge. Implement ``squash`` and ``unsquash``.

    Args:
        wiring: The wiring.
        init: Initial edge weight, after squashing.

    Raises:
        ValueError: No parameter gives the weight ``init``.
    """

    def __init__(self, wiring: Wiring, init: float):
        super().__init__(wiring)
        self.options = {'init': float(init)}
        self._unsquashed_init = self.unsquash(float(init))
        self.alpha = nn.Parameter(torch.empty(self.num_edges))
        self.reset_parameters()

    def unsquash(self, weight: float) -> float:
        """Inverse of ``squash`` on a number."""
        raise NotImplementedError

    def reset_parameters(self) -> None:
        """Set every edge weight to ``init``."""
        nn.init.constant_(self.alpha, self._unsquashed_init)


@register_connectivity('alpha')
class AlphaConnectivity(LearnedConnectivity):
    """a_ji = alpha_ji, initialised to 1 (TopoNet, sections 3.3 and 4.2)."""

    def __init__(self, wiring: Wiring, init: float = 1.0):
        super().__init__(wiring, init)

    def squash(self, alpha: Tensor) -> Tensor:
        return alpha

    def unsquash(self, weight: float) -> float:
        if not math.isfinite(weight):
            raise ValueError(f'init must be finite, got {weight}')
        return weight


@register_connectivity('tanh')
class TanhConnectivity(LearnedConnectivity):
    """a_ji = tanh(alpha_ji), initialised to 0.5 (Janik & Nowak, section 2)."""

    def __init__(self, wiring: Wiring, init: float = 0.5):
        super().__init__(wiring, init)

    def squash(self, alpha: Tensor) -> Tensor:
        return torch.tanh(alpha)

    def unsquash(self, weight: float) -> float:
        if not -1 < weight < 1:
            raise ValueError(f'init must be in (-1, 1) for tanh, got {weight}')
        return math.atanh(weight)


@register_connectivity('sigmoid')
class SigmoidConnectivity(LearnedConnectivity):
    """a_ji = sigmoid(alpha_ji), initialised to 0.5: positive weights as in RandWire.

    An L1 penalty acts on the weight, not on alpha: it drives alpha to minus infinity, not to 0.
    """

    def __init__(self, wiring: Wiring, init: float = 0.5):
        super().__init__(wiring, init)

    def squash(self, alpha: Tensor) -> Tensor:
        return torch.sigmoid(alpha)

    def unsquash(self, weight: float) -> float:
        if not 0 < weight < 1:
            raise ValueError(f'init must be in (0, 1) for sigmoid, got {weight}')
        return math.log(weight / (1 - weight))
