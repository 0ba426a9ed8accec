"""A stage: wiring x edge weights x node operation, and the contract of executors."""

from .aggregate import aggregate, aggregate_reference
from .branch_graph import BranchGraph, layered
from .cross_stage import CrossStageGraph, jumps
from .executor import (
    EquationExecutor,
    Executor,
    Explanation,
    best,
    choose,
    executors,
    explain,
    in_use,
    is_eager,
    node_maps,
    register,
    use,
)
from .graph_stage import GraphStage, node_step
from .offset import Offset, TakesOffsets, compact
from .select import select_edges, until_node, without_node
from .stage import Stage, graph_stages, is_routed
from .thresholds import InEdges

__all__ = [
    'BranchGraph',
    'CrossStageGraph',
    'EquationExecutor',
    'Executor',
    'Explanation',
    'GraphStage',
    'InEdges',
    'Offset',
    'Stage',
    'TakesOffsets',
    'aggregate',
    'aggregate_reference',
    'best',
    'choose',
    'executors',
    'explain',
    'graph_stages',
    'is_routed',
    'in_use',
    'is_eager',
    'jumps',
    'layered',
    'node_maps',
    'node_step',
    'register',
    'select_edges',
    'compact',
    'until_node',
    'use',
    'without_node',
]
