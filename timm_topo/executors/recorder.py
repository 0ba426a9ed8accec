"""Reads of every node of every stage: recorders, and the adjacency of a batch (DG-Net, 3.4)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..stages import EquationExecutor, Stage, best, graph_stages, in_use, use
from ..wiring import Wiring

__all__ = ['Recorder', 'adjacency', 'evaluation_mode', 'record_adjacency', 'record_runs']

Maps = list[Tensor]


class Recorder(EquationExecutor):
    """Run stages by another executor and keep something of every pass. Never chosen.

    Args:
        take: What to keep, from a stage and what :meth:`timm_topo.stages.Stage.run` returns.
        names: Name of each stage whose passes are kept.
        inner: What runs the stages.

    Attributes:
        found: What was kept of the latest pass, by stage name.
    """

    name = 'recorder'

    def __init__(
        self,
        take: Callable[[Stage, Maps, list[Tensor]], Any],
        names: dict[Stage, str],
        inner: EquationExecutor,
    ):
        self.take, self.names, self.inner = take, names, inner
        self.found: dict[str, Any] = {}

    def objection(self, stage: Stage, x: Tensor) -> str:
        return self.inner.objection(stage, x)

    def record(self, stage: Stage, x: Tensor, *args) -> tuple[Maps, list[Tensor]]:
        maps, weights = self.inner.record(stage, x, *args)
        if stage in self.names:
            self.found[self.names[stage]] = self.take(stage, maps, weights)
        return maps, weights


@torch.no_grad()
def adjacency(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Adjacency matrices of every graph stage for a batch of images, in evaluation mode.

    Entry ``[b, j, i]`` is what node j multiplies x_i by for image b: rows are targets, columns
    sources, as in the paper. Closed and absent edges are 0. Rules that do not depend on the image
    give every image the same matrix.

    Args:
        model: A model with graph stages; the mode of its modules is restored.
        images: ``(B, C, H, W)``, preprocessed as in evaluation.

    Returns:
        ``(B, N, N)`` by stage name.

    Raises:
        ValueError: The model has no graph stage.
    """
    with evaluation_mode(model), record_adjacency(model) as buffers:
        model(images)
    return buffers


@contextmanager
def record_adjacency(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Keep the adjacency of the latest forward pass, in any mode and with gradients.

    Args:
        model: A model with graph stages, not compiled.

    Yields:
        A dict, filled by every forward pass: ``(B, N, N)`` by stage name, as for
        :func:`adjacency`.

    Raises:
        ValueError: The model has no graph stage.
    """

    def matrices(stage: Stage, maps: Maps, weights: list[Tensor]) -> Tensor:
        return _matrices(stage.wiring, weights, len(maps[-1]))

    with record_runs(model, matrices) as buffers:
        yield buffers


@contextmanager
def record_runs(
    model: nn.Module, take: Callable[[Stage, Maps, list[Tensor]], Any]
) -> Iterator[dict[str, Any]]:
    """Keep something of how every graph stage ran in the latest forward pass of this thread.

    Inside another :func:`timm_topo.stages.use`, stages run as they do there.

    Args:
        model: A model with graph stages, not compiled.
        take: See :class:`Recorder`.

    Yields:
        A dict, filled by every forward pass, by stage name.

    Raises:
        ValueError: The model has no graph stage; an executor in use that computes no maps.
    """
    names = {stage: name for name, stage in graph_stages(model).items()}
    inner = in_use() or Equation()
    if not isinstance(inner, EquationExecutor):
        raise ValueError(f'executor {inner.name!r} computes no maps that could be recorded')
    recorder = Recorder(take, names, inner)
    with use(recorder):
        yield recorder.found


class Equation(EquationExecutor):
    """The executor of the highest rank that computes all maps."""

    name = 'equation'

    def objection(self, stage: Stage, x: Tensor) -> str:
        return ''

    def record(self, stage: Stage, x: Tensor, *args) -> tuple[Maps, list[Tensor]]:
        return best(stage, x, EquationExecutor).record(stage, x, *args)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[nn.Module]:
    """Run ``model`` in evaluation mode and give every module its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield model.eval()
    finally:
        for module, training in modes:
            module.training = training


def _matrices(wiring: Wiring, weights: list[Tensor], batch: int) -> Tensor:
    """``(B, N, N)`` from the in-edge weights of the nodes ``1 .. N - 1``."""
    empty = weights[0].new_zeros(batch, wiring.num_nodes)
    matrix = [empty]
    for node, row in enumerate(weights, start=1):
        sources = torch.tensor(wiring.preds(node), device=row.device)
        matrix.append(empty.index_copy(1, sources, row.expand(batch, -1).to(empty.dtype)))
    return torch.stack(matrix, 1)
