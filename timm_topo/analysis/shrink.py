"""From a network to a faster one: which nodes may go, until a budget is met.

A node is a whole block of a network, or a branch of it, so that what is removed takes its time
with it. Depth compression of this kind: DepthShrinker (arXiv:2206.00843), LayerMerge
(arXiv:2406.12837); the ratio of worth to cost: Knapsack pruning (arXiv:2002.08258).
"""

import copy
import math
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from ..models import rewire
from ..stages import graph_stages
from .node_costs import Costs, Node, computing_nodes, make_costs, replaced_stages, smaller_stages
from .prune import recalibrate
from .rankings import RANKINGS

__all__ = ['BATCH', 'SEARCHES', 'Search', 'Step', 'as_graph', 'shrink']

#: How nodes are chosen.
SEARCHES = ('greedy', 'knapsack')
_BINS = 1000  # of the knapsack: costs are rounded to a thousandth of the network's
_TRIES = 5  # of the knapsack, when what is measured is above the budget
BATCH = 100  # calibration images per pass


@dataclass(frozen=True)
class Step:
    """A network without some nodes.

    Attributes:
        removed: The nodes, in the order in which they were removed.
        predicted: Cost relative to the network before, from the costs of nodes; None where
            nothing was predicted.
        measured: The same, measured or counted.
        loss: Cross-entropy on the calibration images, with batch norm's statistics as before.
        top1: Accuracy on them, in percent.
        asked: The budget that it was chosen for, if it was.
    """

    removed: tuple[Node, ...]
    predicted: float | None
    measured: float
    loss: float
    top1: float
    asked: float | None = None


def as_graph(model: nn.Module) -> nn.Module:
    """A copy of ``model`` in evaluation mode, with graphs: a plain one as chains of its blocks.

    Raises:
        ValueError: It is of a family that cannot be re-wired, or has no removable block.
    """
    if not graph_stages(model, required=False):
        return rewire(model, 'fixed', 'sequential', nodes='block').eval()
    return copy.deepcopy(model).eval()


class Search:
    """Removes nodes from a network until budgets are met.

    Args:
        model: A network with graphs, as from :func:`as_graph`; left as it is.
        images: Calibration images ``(n, C, H, W)``, as the network evaluates them.
        labels: Their classes ``(n,)``.
        unit: ``'time'``, ``'flops'`` or ``'parameters'``.
        batch_size: Images per pass, where time is measured.
        repeats: Rounds of every measurement of time.
        ranking: Worth of a node, see :data:`timm_topo.analysis.rankings.RANKINGS`.
        seed: Of random rankings.
        known: Earlier evaluations and measurements, by kind and nodes removed; new ones are added.

    Raises:
        ValueError: Unknown unit or ranking, no removable node, or labels that do not fit.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        unit: str = 'time',
        batch_size: int = 1,
        repeats: int = 20,
        ranking: str = 'taylor',
        seed: int = 0,
        known: MutableMapping[str, Any] | None = None,
    ):
        if len(images) != len(labels) or not len(images):
            raise ValueError(f'{len(images)} images and {len(labels)} labels to calibrate on')
        most = getattr(model, 'num_classes', None)
        if most is not None and labels.max() >= most:
            raise ValueError(f'labels up to {labels.max().item()}, the network has {most} classes')
        self.model, self.images, self.labels = model, images, labels
        self.rank, self.ranking, self.seed = RANKINGS.find(ranking), ranking, seed
        self.known = {} if known is None else known
        self.costs: Costs = make_costs(unit, model, images, batch_size, repeats)
        self.start = Step((), None, 1.0, *self._scores(()))
        if not self.candidates(()):
            raise ValueError('no node of this network can be removed')

    def without(self, removed: Sequence[Node]) -> nn.Module:
        """A copy of the network without these nodes."""
        smaller = copy.deepcopy(self.model)
        for name, stage in smaller_stages(smaller, tuple(removed)).items():
            parent, _, leaf = name.rpartition('.')
            setattr(smaller.get_submodule(parent), leaf, stage)
        return smaller

    def candidates(self, removed: tuple[Node, ...]) -> list[Node]:
        """Nodes that can be removed beside others."""
        found = []
        now = {**graph_stages(self.model), **smaller_stages(self.model, removed)}
        for name, stage in now.items():
            for node in computing_nodes({name: stage}):
                try:
                    smaller_stages(self.model, (*removed, node))
                except ValueError:
                    continue
                found.append(node)
        return found

    def _once(self, kind: str, removed: Sequence[Node], measure: Callable[[], Any]) -> Any:
        """What ``measure`` gives for the network without these nodes, or gave before."""
        key = ' '.join([kind, *sorted(map(str, removed))])
        if key not in self.known:
            self.known[key] = measure()
        return self.known[key]

    def _scores(self, removed: tuple[Node, ...]) -> list[float]:
        """Loss and top-1 of the network without these nodes."""
        return self._once('scores', removed, lambda: self._evaluate(removed))

    @torch.inference_mode()
    def _evaluate(self, removed: tuple[Node, ...]) -> list[float]:
        loss, right = 0.0, 0
        with replaced_stages(self.model, smaller_stages(self.model, removed)):
            for batch, target in zip(self.images.split(BATCH), self.labels.split(BATCH)):
                output = self.model(batch)
                loss += cross_entropy(output, target, reduction='sum').item()
                right += (output.argmax(1) == target).sum().item()
        return [loss / len(self.labels), 100 * right / len(self.labels)]

    def _cost(self, removed: tuple[Node, ...]) -> float:
        """Cost of the network without these nodes."""
        return self._once('cost', removed, lambda: self.costs.total(self.without(removed)))

    def _node_costs(self, removed: tuple[Node, ...]) -> dict[Node, float]:
        """What each node costs of the network without ``removed``."""

        def measure() -> dict[str, float]:
            costs = self.costs.nodes(self.without(removed))
            return {str(node): cost for node, cost in costs.items()}

        costs = self._once('costs', removed, measure)
        return {node: costs.get(str(node), 0.0) for node in self.candidates(removed)}

    def _worth(self, removed: tuple[Node, ...], nodes: list[Node]) -> dict[Node, float]:
        """What each node is worth in the network without ``removed``."""
        steps = iter(tqdm(nodes, f'{len(removed)} removed', leave=False, disable=None))

        def loss_without(node: Node) -> float:
            next(steps, None)
            return self._scores((*removed, node))[0]

        def measure() -> dict[str, float]:
            model = self.without(removed)
            worth = self.rank(model, nodes, self.images, self.labels, loss_without, self.seed)
            return {str(node): value for node, value in worth.items()}

        worth = self._once(f'worth:{self.ranking}:{self.seed}', removed, measure)
        now = self._scores(removed)[0] if self.ranking == 'loss' else 0.0
        return {node: worth[str(node)] - now for node in nodes}

    def _after(self, before: Step, node: Node, cost: float) -> Step:
        removed = (*before.removed, node)
        measured = self._cost(removed)
        return Step(removed, before.measured - cost, measured, *self._scores(removed))

    # -- one node after the other -----------------------------------------------------------------

    def greedy(self) -> Iterator[tuple[Step, dict[Node, float], dict[Node, float]]]:
        """One node after the other, that of the least worth per cost first.

        Yields:
            The network so far; and, of the nodes that can be removed next, worth and cost.
        """
        step = self.start
        while nodes := self.candidates(step.removed):
            costs = self._node_costs(step.removed)
            nodes = [node for node in nodes if costs[node] > 0]
            worth = self._worth(step.removed, nodes)
            yield step, worth, costs
            if not nodes:
                return
            least = min(nodes, key=lambda node: _per_cost(worth[node], costs[node]))
            step = self._after(step, least, costs[least])
        yield step, {}, {}

    def meet(self, budgets: Sequence[float]) -> tuple[list[Step], list[Step]]:
        """Networks within budgets, by greedy search.

        Args:
            budgets: Costs relative to the network before, in (0, 1).

        Returns:
            A step per budget, and all steps of the way there.

        Raises:
            ValueError: A budget out of range, or one that no network meets: says what can be.
        """
        _check_budgets(budgets)
        found, way, least = {}, [], min(budgets)
        for step, worth, costs in self.greedy():
            way.append(step)
            for budget in budgets:
                if step.measured <= budget:
                    better = found.get(budget)
                    if better is None or (len(better.removed) == len(step.removed)
                                          and step.loss < better.loss):  # fmt: skip
                        found[budget] = replace(step, asked=budget)
                elif budget not in found:
                    last = self._last(step, worth, costs, budget)
                    if last is not None:
                        found[budget] = replace(last, asked=budget)
            if step.measured <= least:
                break
        self._check_found(budgets, found, way)
        return [found[budget] for budget in budgets], way

    def _last(self, step: Step, worth: dict, costs: dict, budget: float) -> Step | None:
        """The network with one node less that meets the budget at the least loss, if any does.

        Where the next node of the greedy way would do, that is not measured twice.
        """
        enough = [node for node in worth if step.measured - costs[node] <= budget]
        if not enough:
            return None
        node = min(enough, key=worth.get)
        usual = min(worth, key=lambda other: _per_cost(worth[other], costs[other]))
        if node == usual:
            return None
        after = self._after(step, node, costs[node])
        return after if after.measured <= budget else None

    def within(self, drop: float) -> tuple[Step, list[Step]]:
        """The cheapest network on the greedy way whose accuracy fell by no more than ``drop``.

        Args:
            drop: Points of top-1 on the calibration images.

        Raises:
            ValueError: ``drop`` is negative or not finite, or no node can go for so little.
        """
        if not (math.isfinite(drop) and drop >= 0):
            raise ValueError(f'a drop must be finite and >= 0, got {drop}')
        way = []
        for step, _, _ in self.greedy():
            if step.top1 < self.start.top1 - drop:
                break
            way.append(step)
        if len(way) == 1:
            raise ValueError(
                f'no node can go for {drop:g} points: the first takes {self.start.top1:.2f} to '
                f'{step.top1:.2f}%'
            )
        return way[-1], way

    # -- all at once ------------------------------------------------------------------------------

    def knapsack(self, budgets: Sequence[float]) -> tuple[list[Step], list[Step]]:
        """Networks within budgets, worth and costs of nodes being added up.

        Arguments, returns and errors are those of :meth:`meet`.
        """
        _check_budgets(budgets)
        nodes = self.candidates(())
        costs = self._node_costs(())
        nodes = [node for node in nodes if costs[node] > 0]
        worth = self._worth((), nodes)
        found, way = {}, [self.start]
        for budget in budgets:
            saving = 1 - budget
            for _ in range(_TRIES):
                chosen = _knapsack(
                    [max(worth[n], 0) for n in nodes], [costs[n] for n in nodes], saving
                )
                if chosen is None:
                    break
                removed = tuple(nodes[i] for i in chosen)
                try:
                    measured = self._cost(removed)
                except ValueError:  # no path is left
                    break
                predicted = 1 - sum(costs[node] for node in removed)
                way.append(Step(removed, predicted, measured, *self._scores(removed)))
                if measured <= budget:
                    found[budget] = replace(way[-1], asked=budget)
                    break
                saving += max(measured - budget, 1 / _BINS)
        self._check_found(budgets, found, way)
        return [found[budget] for budget in budgets], way

    def _check_found(self, budgets: Sequence[float], found: dict, way: list[Step]) -> None:
        missed = [budget for budget in budgets if budget not in found]
        if missed:
            reached = sorted({round(step.measured, 3) for step in way})
            raise ValueError(
                f'a budget of {missed[0]:g} cannot be met by removing nodes; reached: '
                f'{", ".join(f"{cost:.3f}" for cost in reached)}'
            )


def _per_cost(worth: float, cost: float) -> float:
    """Worth per cost; of nodes that are worth less than nothing, the dearer first."""
    return worth / cost if worth > 0 else worth * cost


def _check_budgets(budgets: Sequence[float]) -> None:
    if not budgets:
        raise ValueError('give at least one budget')
    for budget in budgets:
        if not 0 < budget < 1:
            raise ValueError(
                f'a budget is a share of what the network costs, in (0, 1), got {budget}'
            )


def _knapsack(worth: list[float], costs: list[float], saving: float) -> list[int] | None:
    """Indices of the least total worth whose costs add up to ``saving``; None if all do not.

    >>> _knapsack([3.0, 1.0, 1.0], [0.5, 0.2, 0.3], 0.5)
    [1, 2]
    """
    need = math.ceil(saving * _BINS - 1e-9)
    least = [0.0] + [math.inf] * need  # of what is saved so far, in bins
    chosen: list[tuple[int, ...]] = [()] * (need + 1)
    for index, (value, cost) in enumerate(zip(worth, costs)):
        bins = math.floor(cost * _BINS + 1e-9)
        for saved in range(need, -1, -1):
            to = min(need, saved + bins)
            if least[saved] + value < least[to]:
                least[to] = least[saved] + value
                chosen[to] = (*chosen[saved], index)
    return list(chosen[need]) if math.isfinite(least[need]) else None


def shrink(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    budget: float,
    unit: str = 'time',
    batch_size: int = 1,
    repeats: int = 20,
    ranking: str = 'taylor',
    search: str = 'greedy',
    seed: int = 0,
) -> tuple[nn.Module, Step]:
    """A smaller copy of ``model`` that costs a share of it, without training.

    The statistics of batch norm are estimated anew on the images.

    Args:
        model: A network with graphs, or a residual one of timm.
        images: See :class:`Search`.
        labels: See :class:`Search`.
        budget: Cost relative to the network now, in (0, 1).
        unit: See :class:`Search`.
        batch_size: See :class:`Search`.
        repeats: See :class:`Search`.
        ranking: See :class:`Search`.
        search: ``'greedy'``, which looks again after each node, or ``'knapsack'``.
        seed: See :class:`Search`.

    Returns:
        The copy, a network with graphs (:func:`timm_topo.unwire` and :func:`timm_topo.deploy` take
        them away), and how the budget was met.

    Raises:
        ValueError: As for :class:`Search`; an unknown search; or a budget that cannot be met.
    """
    if search not in SEARCHES:
        raise ValueError(f'unknown search {search!r}; known: {", ".join(SEARCHES)}')
    found = Search(as_graph(model), images, labels, unit, batch_size, repeats, ranking, seed)
    (step,), _ = (found.meet if search == 'greedy' else found.knapsack)([budget])
    return recalibrate(found.without(step.removed), images.split(BATCH)), step
