"""What a kind of node contributes to a stage."""

from dataclasses import dataclass

from torch import nn

__all__ = ['StageParts']


@dataclass(frozen=True)
class StageParts:
    """Modules of one stage, for :class:`timm_topo.stages.GraphStage`.

    Attributes:
        entry: Stage input -> x_0.
        nodes: The computing nodes in order.
        raw_entry: Whether the first of them reads the stage input instead of x_0.
    """

    entry: nn.Module
    nodes: list[nn.Module]
    raw_entry: bool = False
