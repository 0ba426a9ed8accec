"""One learned weight per edge: plain (TopoNet, Eq. 1), tanh (Janik & Nowak), sigmoid (RandWire)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..wiring import Wiring
from .base import StaticConnectivity, as_output, register_connectivity


class LearnedConnectivity(StaticConnectivity):
    """Partial contract: one parameter per edge. Implement ``squash``, ``unsquash``, ``initial``.

    Without ``weigh_sole``, the only in-edge of a node has no parameter: it carries 1, as batch
    norm takes a positive factor away again. With ``mean_output``, those of the last node have none
    either and carry 1 / in-degree. Where pruning takes edges away, such a constant keeps its value,
    and an edge that is the only one left keeps the weight it had, until ``reset_parameters``.

    Args:
        wiring: The wiring.
        init: Initial edge weight, after squashing; by default the rule's ``initial``.
        weigh_sole: Whether the only in-edge of a node has a parameter too.
        mean_output: Whether the last node takes the mean of what it reads.

    Raises:
        TypeError: ``weigh_sole`` or ``mean_output`` is no bool.
        ValueError: No parameter gives the weight ``init``.
    """

    initial: float

    def __init__(
        self,
        wiring: Wiring,
        init: float | None = None,
        weigh_sole: bool = True,
        mean_output: bool = False,
    ):
        super().__init__(wiring)
        init = float(self.initial if init is None else init)
        for name, flag in (('weigh_sole', weigh_sole), ('mean_output', mean_output)):
            if not isinstance(flag, bool):
                raise TypeError(f'{name} must be True or False, got {flag!r}')
        self.options = {'init': init, 'weigh_sole': weigh_sole, 'mean_output': mean_output}
        self.all_learned = weigh_sole and not mean_output
        self._unsquashed_init = self.unsquash(init)
        self.unlearned = [degree == 1 and not weigh_sole for degree in wiring.in_degrees]
        self.unlearned[-1] = self.unlearned[-1] or mean_output
        self.starts, counts = [], [0, 0]  # of a node's in-edges, in alpha or among the constants
        for degree, unlearned in zip(wiring.in_degrees, self.unlearned):
            self.starts.append(counts[unlearned])
            counts[unlearned] += degree
        self.alpha = nn.Parameter(torch.empty(counts[0]), requires_grad=counts[0] > 0)
        if not self.all_learned:
            self.register_buffer('constant', torch.empty(counts[1]))
        self.reset_parameters()

    def forward(self, node: int, context: Tensor | None = None) -> Tensor:
        return as_output(self._weights(node))

    def pass_weights(self) -> Tensor:
        return as_output(self.edge_weights())

    def edge_weights(self) -> Tensor:
        if self.all_learned:
            return self.squash(self.alpha)
        return torch.cat([self._weights(node) for node in range(1, len(self.spans))])

    def _weights(self, node: int) -> Tensor:
        start, stop = self.spans[node]
        if self.all_learned:
            return self.squash(self.alpha[start:stop])
        own = slice(self.starts[node], self.starts[node] + stop - start)
        return self.constant[own] if self.unlearned[node] else self.squash(self.alpha[own])

    def select(self, wiring: Wiring, edges: Sequence[int]) -> 'LearnedConnectivity':
        if self.all_learned:
            return super().select(wiring, edges)
        place, weights = self._places(), self.edge_weights().detach()
        smaller = type(self)(wiring, **self.options).to(self.alpha)
        kept = [(e, smaller.unlearned[target]) for e, (_, target) in zip(edges, wiring.edges)]
        learned = [place[e] for e, unlearned in kept if not unlearned]
        smaller.alpha = nn.Parameter(
            self.alpha.detach()[learned].clone(),
            requires_grad=self.alpha.requires_grad and len(learned) > 0,
        )
        smaller.constant.copy_(weights[[e for e, unlearned in kept if unlearned]])
        return smaller.train(self.training)

    def with_weights(self, wiring: Wiring, weights: Sequence[float]) -> 'LearnedConnectivity':
        if not self.all_learned:
            raise ValueError('edges without a parameter cannot be told their weights')
        made = type(self)(wiring, **self.options).to(self.alpha)
        alpha = [self.unsquash(float(weight)) for weight in weights]
        with torch.no_grad():
            made.alpha.copy_(torch.tensor(alpha, dtype=torch.float64))
        made.alpha.requires_grad_(self.alpha.requires_grad)
        return made.train(self.training)

    def _places(self) -> dict[int, int]:
        """Index into ``alpha`` by index of the edge, for edges that have a parameter."""
        targets = [target for _, target in self.wiring.edges]
        learned = [e for e, target in enumerate(targets) if not self.unlearned[target]]
        return {edge: place for place, edge in enumerate(learned)}

    def unsquash(self, weight: float) -> float:
        """Inverse of ``squash`` on a number."""
        raise NotImplementedError

    def reset_parameters(self) -> None:
        """Set every edge weight to ``init``, of edges without a parameter to their constant."""
        nn.init.constant_(self.alpha, self._unsquashed_init)
        if not self.all_learned:
            nn.init.ones_(self.constant)
            degree = self.wiring.in_degrees[-1]
            if self.options['mean_output'] and degree > 0:
                with torch.no_grad():
                    self.constant[-degree:] = 1 / degree


@register_connectivity('alpha')
class AlphaConnectivity(LearnedConnectivity):
    """a_ji = alpha_ji, initialised to 1 (TopoNet, sections 3.3 and 4.2)."""

    initial = 1.0

    def squash(self, alpha: Tensor) -> Tensor:
        return alpha

    def unsquash(self, weight: float) -> float:
        if not math.isfinite(weight):
            raise ValueError(f'init must be finite, got {weight}')
        return weight


@register_connectivity('tanh')
class TanhConnectivity(LearnedConnectivity):
    """a_ji = tanh(alpha_ji), initialised to 0.5 (Janik & Nowak, section 2)."""

    initial = 0.5

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

    initial = 0.5

    def squash(self, alpha: Tensor) -> Tensor:
        return torch.sigmoid(alpha)

    def unsquash(self, weight: float) -> float:
        if not 0 < weight < 1:
            raise ValueError(f'init must be in (0, 1) for sigmoid, got {weight}')
        return math.log(weight / (1 - weight))
