"""Executing a wiring."""

from .aggregate import aggregate, aggregate_reference
from .graph_stage import GraphStage

__all__ = ['GraphStage', 'aggregate', 'aggregate_reference']
