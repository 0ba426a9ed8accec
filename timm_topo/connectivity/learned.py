"""One learned weight per edge: plain (TopoNet, Eq. 1), tanh (Janik & Nowak), sigmoid (RandWire)."""

import math
from collections.abc import Sequence
from typing import Optional

import torch
from torch import Tensor, nn

from ..wiring import Wiring
from .base import StaticConnectivity, register_connectivity


class LearnedConnectivity(StaticConnectivity):
    """Partial contract: one parameter per edge. Implement ``squash`` and ``unsquash``.

    Without ``weigh_sole``, the only in-edge of a node has no parameter: it carries 1, as batch
    norm takes a positive factor away again. Where pruning leaves a node one in-edge, that edge
    keeps the weight it had, as a constant, until ``reset_parameters``.

    Args:
        wiring: The wiring.
        init: Initial edge weight, after squashing.
        weigh_sole: Whether the only in-edge of a node has a parameter too.

    Raises:
        TypeError: ``weigh_sole`` is no bool.
        ValueError: No parameter gives the weight ``init``.
    """

    def __init__(self, wiring: Wiring, init: float, weigh_sole: bool = True):
        super().__init__(wiring)
        if not isinstance(weigh_sole, bool):
            raise TypeError(f'weigh_sole must be True or False, got {weigh_sole!r}')
        self.options = {'init': float(init)}
        if not weigh_sole:
            self.options['weigh_sole'] = False
        self.weigh_sole = weigh_sole
        self._unsquashed_init = self.unsquash(float(init))
        self.sole = [degree == 1 and not weigh_sole for degree in wiring.in_degrees]
        self.starts, counts = [], [0, 0]  # of a node's in-edges, in alpha or among the constants
        for degree, sole in zip(wiring.in_degrees, self.sole):
            self.starts.append(counts[sole])
            counts[sole] += degree
        self.alpha = nn.Parameter(torch.empty(counts[0]), requires_grad=counts[0] > 0)
        if weigh_sole:
            self.constant = torch.empty(0)  # no state, but TorchScript looks for it
        else:
            self.register_buffer('constant', torch.empty(counts[1]))
        self.reset_parameters()

    def forward(self, node: int, context: Optional[Tensor] = None) -> Tensor:
        span = self.spans[node]
        start = span[0] if self.weigh_sole else self.starts[node]
        stop = start + span[1] - span[0]
        if not self.weigh_sole and self.sole[node]:
            return self.constant[start:stop]
        return self.squash(self.alpha[start:stop])

    def edge_weights(self) -> Tensor:
        weights = self.squash(self.alpha)
        if self.weigh_sole:
            return weights
        by_node = iter(weights.split([d for d in self.wiring.in_degrees if d != 1]))
        constants = iter(self.constant.split(1))
        return torch.cat([next(constants if sole else by_node) for sole in self.sole])

    def select(self, wiring: Wiring, edges: Sequence[int]) -> 'LearnedConnectivity':
        if self.weigh_sole:
            return super().select(wiring, edges)
        place, weights = self._places(), self.edge_weights().detach()
        smaller = type(self)(wiring, **self.options).to(self.alpha)
        kept = [(e, smaller.sole[target]) for e, (_, target) in zip(edges, wiring.edges)]
        learned = [place[e] for e, sole in kept if not sole]
        smaller.alpha = nn.Parameter(
            self.alpha.detach()[learned].clone(),
            requires_grad=self.alpha.requires_grad and len(learned) > 0,
        )
        smaller.constant.copy_(weights[[e for e, sole in kept if sole]])
        return smaller.train(self.training)

    def _places(self) -> dict[int, int]:
        """Index into ``alpha`` by index of the edge, for edges that have a parameter."""
        learned = [e for e, (_, target) in enumerate(self.wiring.edges) if not self.sole[target]]
        return {edge: place for place, edge in enumerate(learned)}

    def unsquash(self, weight: float) -> float:
        """Inverse of ``squash`` on a number."""
        raise NotImplementedError

    def reset_parameters(self) -> None:
        """Set every edge weight to ``init``, of edges without a parameter to 1."""
        nn.init.constant_(self.alpha, self._unsquashed_init)
        if self.constant.numel() > 0:
            nn.init.ones_(self.constant)


@register_connectivity('alpha')
class AlphaConnectivity(LearnedConnectivity):
    """a_ji = alpha_ji, initialised to 1 (TopoNet, sections 3.3 and 4.2)."""

    def __init__(self, wiring: Wiring, init: float = 1.0, weigh_sole: bool = True):
        super().__init__(wiring, init, weigh_sole)

    def squash(self, alpha: Tensor) -> Tensor:
        return alpha

    def unsquash(self, weight: float) -> float:
        if not math.isfinite(weight):
            raise ValueError(f'init must be finite, got {weight}')
        return weight


@register_connectivity('tanh')
class TanhConnectivity(LearnedConnectivity):
    """a_ji = tanh(alpha_ji), initialised to 0.5 (Janik & Nowak, section 2)."""

    def __init__(self, wiring: Wiring, init: float = 0.5, weigh_sole: bool = True):
        super().__init__(wiring, init, weigh_sole)

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

    def __init__(self, wiring: Wiring, init: float = 0.5, weigh_sole: bool = True):
        super().__init__(wiring, init, weigh_sole)

    def squash(self, alpha: Tensor) -> Tensor:
        return torch.sigmoid(alpha)

    def unsquash(self, weight: float) -> float:
        if not 0 < weight < 1:
            raise ValueError(f'init must be in (0, 1) for sigmoid, got {weight}')
        return math.log(weight / (1 - weight))
