"""Executing a wiring."""

from .aggregate import aggregate, aggregate_reference, set_fused_aggregate
from .branch_graph import BranchGraph, layered
from .buffer import adjacency, evaluation_mode, record_adjacency, record_runs
from .cross_stage import CrossStageGraph, jumps
from .graph_stage import GraphStage, graph_stages
from .offset import Offset, shrink

__all__ = [
    'BranchGraph',
    'CrossStageGraph',
    'GraphStage',
    'Offset',
    'adjacency',
    'aggregate',
    'aggregate_reference',
    'evaluation_mode',
    'graph_stages',
    'jumps',
    'layered',
    'record_adjacency',
    'record_runs',
    'set_fused_aggregate',
    'shrink',
]
