"""The reference: the equation as it stands, for all stages and all inputs."""

from torch import Tensor

from ..stages import EquationExecutor, GraphStage, InEdges, Stage, register
from ..stages.stage import checkpointed

__all__ = ['Reference', 'StepExecutor']


class Reference(EquationExecutor):
    """Run the equation; with activation checkpointing, compute it anew in the backward pass."""

    name = 'reference'

    def objection(self, stage: Stage, x: Tensor) -> str:
        return ''

    def record(self, stage: Stage, x: Tensor, *args) -> tuple[list[Tensor], list[Tensor]]:
        return _equation(stage, x, *args)


class StepExecutor(EquationExecutor):
    """Partial contract: the equation with another way to compute a node. Implement ``step``."""

    def objection(self, stage: Stage, x: Tensor) -> str:
        return '' if isinstance(stage, GraphStage) else 'nodes are not computed one by one'

    def step(self, stage: GraphStage, node: int, inputs: list[Tensor], into: InEdges) -> Tensor:
        """The map of one node; see :func:`timm_topo.stages.node_step`."""
        raise NotImplementedError

    def record(self, stage: GraphStage, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        return _equation(stage, x, self.step)


def _equation(stage: Stage, x: Tensor, *args) -> tuple[list[Tensor], list[Tensor]]:
    return stage.run(x, *args) if stage.by_node else checkpointed(stage, stage.run, x, *args)


register(Reference())
