"""Executing a wiring."""

from .aggregate import aggregate, aggregate_reference
from .buffer import adjacency, record_adjacency
from .graph_stage import GraphStage, graph_stages

__all__ = [
    'GraphStage',
    'adjacency',
    'aggregate',
    'aggregate_reference',
    'graph_stages',
    'record_adjacency',
]
