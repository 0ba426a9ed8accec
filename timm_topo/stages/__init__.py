"""Executing a wiring."""

from .aggregate import aggregate, aggregate_reference
from .graph_stage import GraphStage, graph_stages

__all__ = ['GraphStage', 'aggregate', 'aggregate_reference', 'graph_stages']
