"""Pictures of wirings, edge weights, training and networks.

The only part that needs matplotlib. Every function takes plain data and returns a
``matplotlib.figure.Figure`` of its own: no display, no pyplot, no global state. Whatever colour
tells, a position, line style, hatch or mark tells too.
"""

from .networks import (
    accuracy_bars,
    contact_sheet,
    embedding,
    similarity_matrix,
    threshold_curves,
    weight_history,
)
from .series import curves
from .style import MOST_SERIES, save_figure, to_svg
from .wirings import Panel, adjacency, graph, graphs, shared_limit, weight_histogram

__all__ = [
    'MOST_SERIES',
    'Panel',
    'accuracy_bars',
    'adjacency',
    'contact_sheet',
    'curves',
    'embedding',
    'graph',
    'graphs',
    'save_figure',
    'shared_limit',
    'similarity_matrix',
    'threshold_curves',
    'to_svg',
    'weight_histogram',
    'weight_history',
]
