"""DG-Net in evaluation: a node is computed for the images that have an open edge into it."""

from functools import partial

import torch
from torch import Tensor

from ..stages import GraphStage, InEdges, Stage, node_step, register
from ..stages.thresholds import closing_thresholds
from .kernels import KernelSums
from .reference import StepExecutor

__all__ = ['Conditional']


class Conditional(StepExecutor):
    """Skip nodes per image, and sources that no image of the batch reads.

    The host waits for the device once per node.
    """

    name = 'conditional'
    rank = 20

    def objection(self, stage: Stage, x: Tensor) -> str:
        if closing_thresholds(stage) is None:
            return 'no threshold closes edges'
        if stage.training:  # the rule alone evaluates: norms may look at all images
            return 'nodes are in training mode'
        return super().objection(stage, x)

    def record(self, stage: GraphStage, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        x_0 = stage.entry(x)
        kernels = KernelSums()
        step = node_step if kernels.objection(stage, x) else kernels.step
        return stage.propagate(x, x_0, partial(_step_where_open, step, x_0))


def _step_where_open(
    step, x_0: Tensor, stage: GraphStage, node: int, inputs: list[Tensor], into: InEdges
) -> Tensor:
    """The map of a node, computed where edges are open and zero for other images."""
    by_image = into.is_open.tolist()  # here the host waits for the device
    images = [image for image, edges in enumerate(by_image) if any(edges)]
    used = [k for k, edges in enumerate(zip(*by_image)) if any(edges)]
    last = node == stage.wiring.num_nodes - 1
    if not images and not last:
        return x_0.new_zeros(()).expand_as(x_0)
    if images and len(used) < len(inputs):
        inputs, into = [inputs[k] for k in used], InEdges(into.weights[:, used])
    if last or len(images) == len(by_image):
        return step(stage, node, inputs, into)
    rows = torch.tensor(images, device=x_0.device)
    part = step(stage, node, [x_i[rows] for x_i in inputs], InEdges(into.weights[rows]))
    return torch.zeros_like(x_0, dtype=part.dtype).index_copy(0, rows, part)


register(Conditional())
