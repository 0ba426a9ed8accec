"""Executing a wiring."""

from .aggregate import aggregate, aggregate_reference
from .buffer import adjacency, evaluation_mode, record_adjacency
from .cross_stage import CrossStageGraph, jumps
from .graph_stage import GraphStage, graph_stages

__all__ = [
    'CrossStageGraph',
    'GraphStage',
    'adjacency',
    'aggregate',
    'aggregate_reference',
    'evaluation_mode',
    'graph_stages',
    'jumps',
    'record_adjacency',
]
