"""What executors are measured by: sums edge by edge, and nodes without sums. Never chosen."""

import copy
from collections.abc import Callable

from torch import Tensor, nn

from ..stages import GraphStage, InEdges, Stage, use
from .reference import StepExecutor

__all__ = ['BASELINES', 'NaiveSum', 'NodesAlone', 'Using', 'naive_sum', 'nodes_alone']


class _Baseline(StepExecutor):
    def objection(self, stage: Stage, x: Tensor) -> str:
        if stage.needs_context:
            return 'edge weights depend on the image'
        return super().objection(stage, x)


class NaiveSum(_Baseline):
    """Products added up one by one, sum_i a_ij * x_i, as autograd sees them."""

    name = 'naive sum'

    def step(self, stage: GraphStage, node: int, inputs: list[Tensor], into: InEdges) -> Tensor:
        total = stage.offset(node)(sum(a * x_i for a, x_i in zip(into.weights, inputs)))
        return total if node == stage.wiring.num_nodes - 1 else stage.nodes[node - 1](total)


class NodesAlone(_Baseline):
    """No edges: each node reads the map before it, unweighed. Cost of the nodes alone.

    So all nodes are in the backward pass, as they are in the network. Where the map before has
    another shape, a node reads its last source.
    """

    name = 'nodes alone'

    def record(self, stage: GraphStage, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        before = []

        def step(stage: GraphStage, node: int, inputs: list[Tensor], into: InEdges) -> Tensor:
            source = inputs[-1]
            if (
                before
                and before[-1].shape == source.shape
                and not (stage.first_reads_input and node == 1)
            ):
                source = before[-1]
            if node < stage.wiring.num_nodes - 1:
                before.append(_kept(stage.nodes[node - 1], source))
            return source if node == stage.wiring.num_nodes - 1 else before[-1]

        return stage.run(x, step)


def _kept(node: nn.Module, x: Tensor) -> Tensor:
    """``node(x)``, which leaves x as it is."""
    inplace = any(getattr(module, 'inplace', False) for module in node.modules())
    return node(x.clone() if inplace else x)


class Using(nn.Module):
    """A model whose stages one executor runs.

    Args:
        model: A model with graph stages.
        executor: See :func:`timm_topo.stages.use`.
    """

    def __init__(self, model: nn.Module, executor):
        super().__init__()
        self.model, self.executor = model, executor

    def forward(self, *inputs):
        with use(self.executor):
            return self.model(*inputs)


def naive_sum(model: nn.Module) -> Using:
    """``model`` with :class:`NaiveSum` in its stages."""
    return Using(model, NaiveSum())


def nodes_alone(model: nn.Module) -> Using:
    """A copy of ``model`` with :class:`NodesAlone` in its stages.

    No module of the copy overwrites its input, which spares copies of maps.
    """
    model = copy.deepcopy(model)
    for module in model.modules():
        if getattr(module, 'inplace', False):
            module.inplace = False
    return Using(model, NodesAlone())


#: What a network is measured beside, by name: functions from a model to a model.
BASELINES: dict[str, Callable[[nn.Module], nn.Module]] = {
    'ours': lambda model: model,
    'naive sum': naive_sum,
    'nodes alone': nodes_alone,
}
