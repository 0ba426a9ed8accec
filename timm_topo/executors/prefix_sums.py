"""Inference with sums that continue one another: what residual networks have always added up.

Where node j reads what an earlier node k reads, with the same weights, and then more, its sum is
s_j = s_k + the rest. With all edges at 1 in a complete graph this is one addition per node. The
order of additions is that of the equation, so the bits are the same.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..stages import Executor, GraphStage, Offset, Stage, register
from ..watched import watched_any

__all__ = ['PrefixSums', 'Sum', 'keeps_input', 'plan']


class Sum(NamedTuple):
    """How the sum of a node is computed.

    Attributes:
        base: The earlier node with the longest sum to start from, or None.
        rest: Place among the maps and weight of each further term, in order.
    """

    base: int | None
    rest: tuple[tuple[int, float], ...]


class PrefixSums(Executor):
    """Read the weights once per pass, and start each sum from an earlier one where it can."""

    name = 'prefix sums'
    rank = 25

    def objection(self, stage: Stage, x: Tensor) -> str:
        if torch.is_grad_enabled():
            return 'a gradient is wanted'
        if not isinstance(stage, GraphStage) or type(stage).run is not GraphStage.run:
            return 'nodes are not computed one by one'
        if stage.needs_context:
            return 'edge weights depend on the image'
        if x.device.type != 'cpu':
            return 'weights would have to be read from the device'
        if x.dtype not in (torch.float32, torch.float64) or torch.is_autocast_enabled('cpu'):
            return 'sums of half precision are added up in float32'
        return watched_any((stage.connectivity,))

    def run(self, stage: GraphStage, x: Tensor) -> Tensor:
        weights = tuple(stage.connectivity.pass_weights().tolist())
        nodes, offsets = list(stage.nodes), [*stage.offsets, stage.output_offset]
        keep = tuple(map(keeps_input, nodes))
        how = plan(stage.map_index, weights, keep, stage.first_reads_input)
        maps, totals = stage.spread(0, stage.entry(x)), []
        for node, (base, rest) in enumerate(how, start=1):
            inputs = [x] if stage.first_reads_input and node == 1 else maps
            owned = node > len(nodes) or not keep[node - 1]
            total = _add(None if base is None else totals[base - 1], rest, inputs, owned)
            totals.append(total)
            if isinstance(offsets[node - 1], Offset):
                total = offsets[node - 1](total)
            if node <= len(nodes):
                maps += stage.spread(node, nodes[node - 1](total))
        return total


def _add(
    base: Tensor | None, rest: tuple[tuple[int, float], ...], maps: list[Tensor], owned: bool
) -> Tensor:
    """base + sum of the rest; a map of its own if ``owned``, else perhaps one of ``maps``."""
    total, mine = base, False
    if base is None:
        (place, weight), *rest = rest
        total, mine = (maps[place], False) if weight == 1 else (maps[place] * weight, True)
    for place, weight in rest:
        add = total.add_ if mine else total.add
        total, mine = add(maps[place], alpha=weight), True
    return total.clone() if owned and not mine else total


def keeps_input(node: nn.Module) -> bool:
    """Whether a node certainly leaves the map it reads as it is."""
    while isinstance(node, nn.Sequential) and len(node):
        node = node[0]
    kinds = (nn.Conv2d, nn.modules.batchnorm._BatchNorm, nn.LayerNorm)
    return getattr(node, 'keeps_input', False) or isinstance(node, kinds)


@lru_cache(maxsize=256)
def plan(
    index: tuple[tuple[int, ...], ...],
    weights: tuple[float, ...],
    keep: tuple[bool, ...],
    first_reads_input: bool,
) -> tuple[Sum, ...]:
    """How to compute the sums of nodes ``1 .. N - 1``.

    Args:
        index: Places of what each of the N nodes reads among the maps, in order.
        weights: ``(E,)``, in the order of the nodes.
        keep: Whether each computing node leaves what it reads as it is.
        first_reads_input: Whether node 1 reads the stage input.

    >>> index = (), (0,), (0, 1), (0, 1, 2)
    >>> [(s.base, s.rest) for s in plan(index, (1.0,) * 6, (True, True), False)]
    [(None, ((0, 1.0),)), (1, ((1, 1.0),)), (2, ((2, 1.0),))]
    """
    terms, stop = [], 0
    for places in index[1:]:
        start, stop = stop, stop + len(places)
        terms.append(tuple(zip(places, weights[start:stop])))
    bases = []
    for node, own in enumerate(terms, start=1):
        earlier = [
            k for k in range(1, node)
            if keep[k - 1] and own[: len(terms[k - 1])] == terms[k - 1]
            and not (first_reads_input and k == 1)
        ]  # fmt: skip
        bases.append(max(earlier, key=lambda k: len(terms[k - 1]), default=None))
    if first_reads_input:
        bases[0], terms[0] = None, ((0, terms[0][0][1]),)
    skipped = [0 if base is None else len(terms[base - 1]) for base in bases]
    return tuple(Sum(base, own[skip:]) for base, own, skip in zip(bases, terms, skipped))


register(PrefixSums())
