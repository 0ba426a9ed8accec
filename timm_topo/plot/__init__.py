"""Pictures of wirings, edge weights, training, damage and networks.

The only part that needs matplotlib. Every function takes plain data and returns a
``matplotlib.figure.Figure`` of its own: no display, no pyplot, no global state. Whatever colour
tells, a position, line style, hatch or mark tells too.
"""

from ..extras import needs

with needs('timm-topo[analysis]'):
    from .cost import accuracy_over_cost
    from .damage import damage_curves, node_damage
    from .degrees import degrees
    from .layers import layered_graph, layered_graphs
    from .networks import (
        accuracy_bars,
        contact_sheet,
        embedding,
        similarity_matrix,
        threshold_curves,
        weight_history,
    )
    from .process import animate, process_strip, retrained
    from .series import curves
    from .style import MOST_SERIES, save_figure, to_svg
    from .wirings import Panel, adjacency, graph, graphs, shared_limit, weight_histogram

__all__ = [
    'MOST_SERIES',
    'Panel',
    'accuracy_bars',
    'accuracy_over_cost',
    'adjacency',
    'animate',
    'contact_sheet',
    'curves',
    'damage_curves',
    'degrees',
    'embedding',
    'graph',
    'graphs',
    'layered_graph',
    'layered_graphs',
    'node_damage',
    'process_strip',
    'retrained',
    'save_figure',
    'shared_limit',
    'similarity_matrix',
    'threshold_curves',
    'to_svg',
    'weight_histogram',
    'weight_history',
]
