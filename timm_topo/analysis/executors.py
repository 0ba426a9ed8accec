"""A network run in other ways: edge by edge, or without edges. What the executor is measured by."""

import copy
from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from ..stages import CrossStageGraph, GraphStage, graph_stages

__all__ = ['EXECUTORS', 'as_floor', 'as_naive']


def as_naive(model: nn.Module) -> nn.Module:
    """A copy whose stages add products up one by one, x'_j = sum_i a_ij * x_i.

    Args:
        model: A model with stages that are :class:`GraphStage` or :class:`CrossStageGraph`.
    """
    return _executed_by(_naive, model)


def as_floor(model: nn.Module) -> nn.Module:
    """A copy without edges, what its nodes alone cost: each reads the map before it, unweighed.

    So they are all in the backward pass, as they are in the network. Where the map before is of
    another shape, it is the one before that; without one, what reads the stage input alone is in
    the forward pass only, as are transitions to other resolutions that no node reads then.

    Args:
        model: As for :func:`as_naive`.
    """
    return _executed_by(_floor, model)


def _executed_by(run: Callable, model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    for name, stage in graph_stages(model).items():
        if type(stage) not in (GraphStage, CrossStageGraph) or stage.needs_context:
            raise ValueError(f'{name}: only static sums over maps have a naive form')
        stage.forward = partial(run, stage)
    return model


def _naive(stage: GraphStage, x: Tensor) -> Tensor:
    weights = stage.connectivity.pass_weights()

    def read(node: int, maps: list[Tensor]) -> Tensor:
        start, stop = stage.wiring.in_edges[node]
        inputs = stage.inputs(node, x, maps)
        return sum(a * x_i for a, x_i in zip(weights[start:stop], inputs))

    return _run(stage, x, read)


def _floor(stage: GraphStage, x: Tensor) -> Tensor:
    for module in stage.nodes.modules():
        if getattr(module, 'inplace', False):
            module.inplace = False  # what it reads is no sum of its own

    def read(node: int, maps: list[Tensor]) -> Tensor:
        source = stage.inputs(node, x, maps)[-1]
        if stage.raw_entry and node == 1:
            return source
        return next(x_i for x_i in reversed(maps) if x_i.shape == source.shape)

    return _run(stage, x, read)


def _run(stage: GraphStage, x: Tensor, read: Callable) -> Tensor:
    maps = stage.offer(0, stage.entry(x), [])
    for number, node in enumerate(stage.nodes, start=1):
        maps = stage.offer(number, node(read(number, maps)), maps)
    return read(stage.wiring.num_nodes - 1, maps)


#: What to run a network with, by name: functions from a model to a model.
EXECUTORS = {'ours': lambda model: model, 'naive': as_naive, 'floor': as_floor}
