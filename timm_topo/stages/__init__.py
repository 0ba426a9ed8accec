"""Executing a wiring."""

from .aggregate import aggregate, aggregate_reference
from .branch_graph import BranchGraph, layered
from .buffer import adjacency, evaluation_mode, record_adjacency
from .cross_stage import CrossStageGraph, jumps
from .graph_stage import GraphStage, graph_stages

__all__ = [
    'BranchGraph',
    'CrossStageGraph',
    'GraphStage',
    'adjacency',
    'aggregate',
    'aggregate_reference',
    'evaluation_mode',
    'graph_stages',
    'jumps',
    'layered',
    'record_adjacency',
]
