"""The contract of a graph stage: wiring x edge weights x node operation."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..connectivity import Connectivity
from ..wiring import Wiring
from .executor import choose

__all__ = ['Stage', 'checkpointed', 'graph_stages', 'is_routed']


class Stage(nn.Module):
    """Partial contract: a graph of nodes between a stage input and a stage output.

    A subclass implements ``run``, the equation; ``rebuild``; and ``edge_macs``.

    Args:
        wiring: N nodes without dead ones.
        connectivity: The rule that weighs the edges of ``wiring``.
        entry: Stage input -> x_0; resizes and projects.
        nodes: Modules of the N - 2 computing nodes.
        computing: How many nodes the modules compute.
        node_ids: Ids the N nodes had before pruning; by default ``0 .. N - 1``.

    Attributes:
        levels: Level of each node among the resolutions of the graph.
        level_sizes: Nodes per level before pruning.
        grad_checkpointing: Whether the backward pass computes anew what is inside.
        by_node: Whether it does so node by node, instead of the stage as a whole.

    Raises:
        ValueError: Dead nodes in the wiring, or a number of nodes, edges or ids that does not fit.
    """

    def __init__(
        self,
        wiring: Wiring,
        connectivity: Connectivity,
        entry: nn.Module,
        nodes: Sequence[nn.Module],
        computing: int,
        node_ids: Sequence[int] | None = None,
    ):
        super().__init__()
        dead = wiring.dead_nodes()
        if dead:
            raise ValueError(f'nodes {list(dead)} of {wiring} are dead; remove them with prune()')
        if computing != wiring.num_nodes - 2:
            raise ValueError(
                f'{wiring} has {wiring.num_nodes - 2} computing nodes, got {computing}'
            )
        if connectivity.wiring != wiring:
            raise ValueError(f'the connectivity was built for a wiring other than {wiring}')
        self.node_ids = list(range(wiring.num_nodes) if node_ids is None else node_ids)
        if len(self.node_ids) != wiring.num_nodes or sorted({0, *self.node_ids}) != self.node_ids:
            raise ValueError(f'{wiring} needs as many node ids, ascending from 0, got {node_ids}')
        self.wiring = wiring
        self.levels = [0] * wiring.num_nodes
        self.level_sizes = [self.node_ids[-1] + 1]
        self.grad_checkpointing = False
        self.by_node = False
        self.entry = entry
        self.nodes = nn.ModuleList(nodes)
        self.connectivity = connectivity

    @property
    def needs_context(self) -> bool:
        """Whether edge weights depend on the image."""
        return self.connectivity.needs_context

    def forward(self, x: Tensor) -> Tensor:
        """Stage input ``(B, C_in, H_in, W_in)`` -> stage output ``(B, C, H, W)``."""
        return choose(self, x).run(self, x)

    def run(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The equation.

        Returns:
            The maps of the nodes, the stage output last; and the weights that nodes ``1 .. N - 1``
            read, each ``(in_degree,)`` or ``(B, in_degree)``.
        """
        raise NotImplementedError

    def rebuild(self, wiring: Wiring, connectivity: Connectivity, kept: Sequence[int]) -> 'Stage':
        """This stage on another wiring, whose nodes are the nodes ``kept`` of this one.

        Modules are shared with this stage.
        """
        raise NotImplementedError

    def edge_macs(self) -> list:
        """Multiply-adds of edges per value that each of ``nodes`` reads, and per value of the
        stage output last.
        """
        raise NotImplementedError


def checkpointed(stage: Stage, function: Callable, *inputs):
    """``function(*inputs)``, for the backward pass computed anew if ``stage`` is checkpointed."""
    if recomputes(stage):
        return checkpoint(function, *inputs, use_reentrant=False)
    return function(*inputs)


def recomputes(stage: Stage) -> bool:
    """Whether activation checkpointing is in force."""
    return stage.grad_checkpointing and torch.is_grad_enabled() and not torch.jit.is_tracing()


def graph_stages(model: nn.Module, required: bool = True) -> dict[str, Stage]:
    """The graph stages of a model by module name.

    Args:
        model: Any module.
        required: Whether a model without any is an error.

    Raises:
        ValueError: There is none.
    """
    stages = {n: module for n, module in model.named_modules() if isinstance(module, Stage)}
    if required and not stages:
        raise ValueError(f'{type(model).__name__} has no graph stage')
    return stages


def is_routed(model: nn.Module) -> bool:
    """Whether any edge weight of a model depends on the image."""
    return any(stage.needs_context for stage in graph_stages(model, required=False).values())
