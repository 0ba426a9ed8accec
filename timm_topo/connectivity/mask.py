"""MaskConnect: each node reads exactly K of its sources (Ahmed & Torresani, 2018)."""

import logging
import random
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..checks import check_integer
from ..wiring import Wiring
from .base import Connectivity, register_connectivity

__all__ = ['MaskConnectivity']

_logger = logging.getLogger(__name__)

MASKS = ('learned', 'prev', 'full', 'random')
_ROUNDING = 1e-6  # of a sum of masks that is left as it is
_RARELY = 1e-30  # what a mask of 0 counts in a draw: it is taken where there are too few others


@register_connectivity('mask')
class MaskConnectivity(Connectivity):
    """a_ji = m_ji in {0, 1} with sum_i m_ji = K_j, the fan-in of node j.

    Learned: a real-valued mask per edge in [0, 1]. Each forward pass in training draws K in-edges
    of every node without replacement, each time with probability proportional to the real-valued
    masks of those not drawn yet. Before, the real-valued masks of every node are clipped to [0, 1]
    and normalised to sum 1, in place; an optimizer may leave them elsewhere until then, and
    averages of weights see that. The binary mask multiplies the maps; its gradient, which inactive
    edges have too, is that of the real-valued mask.
    Evaluation takes the K largest; of equal ones, the latest sources: so of masks that have not
    learned yet. So does training once the masks are frozen, as ``topo train --learn-edges`` does
    after a share of the epochs: weights that were trained on draws alone are not those that the K
    largest need. Pruning that leaves every node the K it reads leaves nothing to learn: the masks
    are fixed from then on.

    The text we have says neither how evaluation chooses, nor how masks are kept in [0, 1], nor
    where they start: the K largest, with which weights are trained on, clipping, the sum and one
    value for all edges are from memory of the authors' full paper. How ties fall is ours.

    Draws come from torch's generator. The processes of a distributed training, which timm seeds
    differently, draw differently, as they do for dropout: a step then averages the gradients of as
    many draws, and the real-valued masks stay the same in all processes.

    Args:
        wiring: The wiring.
        fan_in: K, for all nodes or one per node (node 0 has no in-edges: any). A node with fewer
            in-edges uses all of them, which is logged: as a warning where no node has a choice.
            None: all; 1 for ``'prev'``; as many as there are ones in
            masks that are given.
        masks: ``'learned'``; or fixed: ``'prev'``, the K latest sources; ``'full'``, all;
            ``'random'``, K at random; or 0 or 1 for every edge, in the order of ``wiring.edges``.
        seed: Of ``'random'``.
        init: Initial real-valued mask of every edge, in (0, 1].
        average: Whether an active edge weighs 1 / K_j instead of 1, so that maps do not grow with
            the fan-in (ours); or, per node, what to divide by instead of K_j: pruned networks go on
            dividing by what there was.
        full_output: Whether the last node reads all its sources, whatever ``fan_in`` says.

    Raises:
        TypeError: ``fan_in``, ``seed`` or a flag is of another type.
        ValueError: ``fan_in`` below 1 or not one per node; ``'full'`` with less than all; unknown
            masks; masks given without exactly K_j ones at a node; ``init`` out of range.
    """

    per_edge = ('mask',)

    def __init__(
        self,
        wiring: Wiring,
        fan_in: int | Sequence[int] | None = None,
        masks: str | Sequence[int] = 'learned',
        seed: int = 0,
        init: float = 0.5,
        average: bool | Sequence[int] = False,
        full_output: bool = False,
    ):
        super().__init__(wiring)
        if isinstance(masks, str) and masks not in MASKS:
            raise ValueError(
                f'unknown masks {masks!r}; known: {", ".join(MASKS)}, or 0 or 1 for every edge'
            )
        if not isinstance(masks, (str, list, tuple, Tensor)):
            raise TypeError(f'masks must be a name or 0 or 1 for every edge, got {masks!r}')
        divided = isinstance(average, (list, tuple))
        flags = dict(average=average, full_output=full_output)
        for name, flag in flags.items():
            if not isinstance(flag, bool) and not (divided and name == 'average'):
                raise TypeError(f'{name} must be True or False, got {flag!r}')
        check_integer('seed', seed, least=None)
        if isinstance(init, bool) or not isinstance(init, (int, float)) or not 0 < init <= 1:
            raise ValueError(f'init must be in (0, 1], got {init!r}')
        self.fan_ins = _fan_ins(wiring, fan_in, masks, full_output)
        self.learned = isinstance(masks, str) and masks == 'learned'
        self.given = [] if self.learned else _fixed_masks(wiring, self.fan_ins, masks, seed)
        self.init = float(init)
        self.divisors = _divisors(wiring, self.fan_ins, average)
        self.options = {
            'fan_in': list(fan_in) if isinstance(fan_in, (list, tuple)) else fan_in,
            'masks': masks if isinstance(masks, str) else list(self.given),
            'seed': seed, 'init': self.init, **flags,
            'average': list(average) if divided else average,
        }  # fmt: skip
        mask = torch.empty(self.num_edges)
        if self.learned:
            self.mask = nn.Parameter(mask)
        else:
            self.register_buffer('mask', mask)
        for name in ('padded_edges', 'places', 'limits', 'scale', 'targets'):
            self.register_buffer(name, None, persistent=False)
        self.reset_parameters()

    def forward(self, node: int, context: Tensor | None = None) -> Tensor:
        own = slice(*self.spans[node])
        mask = self._clipped()[own]
        active = _ranks(self._keys(mask, self.training)[None]) < self.fan_ins[node]
        return (active[0].to(mask.dtype) + (mask - mask.detach())) * self.scale[own]

    def pass_weights(self) -> Tensor:
        return self._all(self.training)

    def edge_weights(self) -> Tensor:
        return self._all(False)

    def _all(self, draws: bool) -> Tensor:
        """All weights; a row per node, padded to the largest in-degree."""
        mask = self._clipped()
        keys = self._keys(mask, draws)
        padded = torch.cat([keys, keys.new_full((1,), -1.0)])[self.padded_edges]
        active = (_ranks(padded) < self.limits).flatten()[self.places]
        return (active.to(mask.dtype) + (mask - mask.detach())) * self.scale

    def _clipped(self) -> Tensor:
        """The masks; where they learn, in training, clipped and normalised for good."""
        if self.training and self.learned:
            with torch.no_grad():
                self.mask.clamp_(0.0, 1.0)
                sums = self.mask.new_zeros(self.wiring.num_nodes)
                sums.index_add_(0, self.targets, self.mask)
                sums = sums.where((sums - 1).abs() > _ROUNDING, 1.0).clamp(min=_RARELY)
                self.mask.div_(sums[self.targets])
        return self.mask

    def _keys(self, mask: Tensor, draws: bool) -> Tensor:
        """What the K largest of are active."""
        keys = mask.detach().float().clamp(0.0, 1.0)
        if draws and self.learned:  # the K largest of m / e, e exponential: K draws one by one
            keys = (keys + _RARELY) / torch.empty_like(keys).exponential_()
        return keys

    def reset_parameters(self) -> None:
        """Learned masks start equal, fixed ones are as they were given."""
        self._lay_out()
        with torch.no_grad():
            if self.learned:
                self.mask.fill_(self.init)
            else:
                self.mask.copy_(torch.tensor(self.given))

    def _lay_out(self) -> None:
        """Buffers that follow: edges of each node, places of each edge, K_j, weight of an edge."""
        width = max(self.wiring.in_degrees)
        padded, places = [], []
        for row, (start, stop) in enumerate(self.spans[1:]):
            padded.append([*range(start, stop), *[self.num_edges] * (width - stop + start)])
            places += range(row * width, row * width + stop - start)
        limits = [[fan_in] for fan_in in self.fan_ins[1:]]
        self.padded_edges, self.places, self.limits = (
            torch.tensor(values, dtype=torch.long, device=self.mask.device)
            for values in (padded, places, limits)
        )
        weights = [1 / self.divisors[target] for _, target in self.wiring.edges]
        targets = [target for _, target in self.wiring.edges]
        self.targets = torch.tensor(targets, dtype=torch.long, device=self.mask.device)
        self.scale = torch.tensor(weights, dtype=self.mask.dtype, device=self.mask.device)

    def select(self, wiring: Wiring, edges: Sequence[int]) -> 'MaskConnectivity':
        """The same rule on a smaller wiring; no edge becomes active that was not."""
        active = self.edge_weights().ne(0).tolist()
        smaller = super().select(wiring, edges)
        smaller.fan_ins, smaller.divisors = [0] * wiring.num_nodes, [1] * wiring.num_nodes
        for edge, (_, target) in zip(edges, wiring.edges):
            smaller.fan_ins[target] += active[edge]
            smaller.divisors[target] = self.divisors[self.wiring.edges[edge][1]]
        smaller.options = {**self.options, 'fan_in': smaller.fan_ins, 'full_output': False}
        if self.options['average']:
            smaller.options['average'] = smaller.divisors
        if self.learned and smaller.fan_ins == list(wiring.in_degrees):  # nothing left to choose
            smaller.learned, smaller.given = False, [1] * len(edges)
            smaller.options.update(masks='full', fan_in=None)
            del smaller.mask
            smaller.register_buffer('mask', torch.ones_like(self.mask[: len(edges)].detach()))
        elif not self.learned:
            smaller.given = smaller.options['masks'] = [int(active[edge]) for edge in edges]
        smaller._lay_out()
        return smaller

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        mask = state_dict.get(f'{prefix}mask')
        fixed = not self.learned and mask is not None and not mask.is_meta
        if fixed and mask.tolist() != self.given:
            args[-1].append(f'{prefix}mask: not the fixed masks of this network')

    def extra_repr(self) -> str:
        kind = 'learned' if self.learned else 'fixed'
        fan_ins = sorted({k for k, (start, stop) in zip(self.fan_ins, self.spans) if stop > start})
        return f'{super().extra_repr()}, {kind}, fan_in={fan_ins}'


def _ranks(keys: Tensor) -> Tensor:
    """Rank of each key in its row ``(rows, keys)``, from 0; of equal ones, the latest comes first.

    By comparing all pairs, as a stable sort cannot be exported to ONNX.
    """
    own, other = keys[:, :, None], keys[:, None, :]
    place = torch.ones_like(keys, dtype=torch.long).cumsum(1)
    later = place[:, None, :] > place[:, :, None]
    return ((other > own) | ((other == own) & later)).sum(-1)


def _fan_ins(wiring: Wiring, fan_in, masks, full_output: bool) -> list[int]:
    """Active in-edges of every node."""
    degrees = wiring.in_degrees
    if fan_in is None and not isinstance(masks, str):
        values = _values(wiring, masks)
        wanted = [sum(values[start:stop]) for start, stop in wiring.in_edges]
    elif fan_in is None:
        wanted = [1 if masks == 'prev' else degree for degree in degrees]
    elif isinstance(fan_in, (list, tuple)):
        if len(fan_in) != wiring.num_nodes:
            raise ValueError(f'{wiring} needs a fan_in per node, got {len(fan_in)}: {fan_in}')
        wanted = [_integer(k, 0) for k in fan_in]
    else:
        wanted = [_integer(fan_in, 1)] * wiring.num_nodes
    if full_output:
        wanted[-1] = degrees[-1]
    for node, (k, degree) in enumerate(zip(wanted, degrees)):
        if masks == 'full' and k < degree:
            raise ValueError(f"masks='full' reads all {degree} sources of node {node}, not {k}")
    fewer = [n for n, (k, degree) in enumerate(zip(wanted, degrees)) if degree < k and n > 0]
    if fewer:
        none_chooses = all(k >= degree for k, degree in zip(wanted, degrees))
        _logger.log(
            logging.WARNING if none_chooses else logging.INFO,
            f'fan_in {fan_in}: {len(fewer)} of {wiring.num_nodes - 1} nodes ({fewer[0]} the first) '
            'have fewer in-edges and use all of them'
            + (': no node has a choice' if none_chooses else ''),
        )
    return [min(k, degree) for k, degree in zip(wanted, degrees)]


def _divisors(wiring: Wiring, fan_ins: list[int], average) -> list[int]:
    """What an active in-edge of each node is divided by."""
    if isinstance(average, bool):
        return [max(1, k) if average else 1 for k in fan_ins]
    if len(average) != wiring.num_nodes or any(_integer(k, 1, 'average') < 1 for k in average):
        raise ValueError(f'{wiring} needs a divisor per node, got {len(average)}: {average}')
    return list(average)


def _integer(value: int, least: int, name: str = 'fan_in') -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f'{name} must be an integer, one per node or None, got {value!r}')
    if value < least:
        raise ValueError(f'{name} must be at least {least}, got {value}')
    return value


def _fixed_masks(wiring: Wiring, fan_ins: list[int], masks, seed: int) -> list[int]:
    """0 or 1 per edge, K_j ones at every node."""
    if not isinstance(masks, str):
        return _given(wiring, fan_ins, masks)
    rng, fixed = random.Random(seed), [0] * wiring.num_edges
    for (start, stop), fan_in in zip(wiring.in_edges, fan_ins):
        row = range(start, stop)
        for edge in rng.sample(row, fan_in) if masks == 'random' else row[stop - start - fan_in :]:
            fixed[edge] = 1
    return fixed


def _given(wiring: Wiring, fan_ins: list[int], masks: Sequence[int]) -> list[int]:
    values = _values(wiring, masks)
    for node, ((start, stop), fan_in) in enumerate(zip(wiring.in_edges, fan_ins)):
        ones = sum(values[start:stop])
        if ones != fan_in:
            raise ValueError(f'the mask of node {node} must have {fan_in} ones, got {ones}')
    return values


def _values(wiring: Wiring, masks: Sequence[int]) -> list[int]:
    values = masks.tolist() if isinstance(masks, Tensor) else list(masks)
    if len(values) != wiring.num_edges:
        raise ValueError(f'{wiring} needs masks for all edges, got {len(values)}')
    if any(value not in (0, 1) for value in values):
        raise ValueError(f'masks are 0 or 1, got {next(v for v in values if v not in (0, 1))!r}')
    return [int(value) for value in values]
