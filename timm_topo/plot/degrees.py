"""How many edges, and how much weight, enter and leave the nodes of wirings."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ..wiring import Wiring
from .style import INK, LOOKS, check_series, styled
from .wirings import Panel


@styled
def degrees(series: Mapping[str, Wiring] | Sequence[Panel], weighted: bool = False) -> Figure:
    """In-degrees of nodes as bars up, out-degrees as hatched bars down, a row per wiring.

    Args:
        series: At most 6 wirings by label, or panels; those bring titles, weights and the names of
            nodes.
        weighted: Whether to sum |weight| of the edges instead of counting them.

    Raises:
        ValueError: No or too many wirings, one without edges, or ``weighted`` without weights.
    """
    if isinstance(series, Mapping):
        if weighted and series:
            raise ValueError('weighted degrees need a sequence of Panel, got wirings only')
        series = [Panel(label, wiring, [1] * wiring.num_edges) for label, wiring in series.items()]
    panels = list(series)
    check_series({number: panel.weights for number, panel in enumerate(panels)}, 'degrees')
    widest = max(panel.wiring.num_nodes for panel in panels)
    fig = Figure(figsize=(np.clip(0.2 * widest + 1.5, 4.5, 10), 1.75 * len(panels) + 0.5))
    grid = fig.subplots(len(panels), sharey=True, squeeze=False)[:, 0]
    looks = (
        dict(label='in', color=LOOKS[0][0]),
        dict(label='out', facecolor='white', edgecolor=LOOKS[1][0], hatch='/////'),
    )
    for axes, panel in zip(grid, panels):
        nodes = range(panel.wiring.num_nodes)
        amounts = np.abs(panel.weights) if weighted else None
        for end, sign, look in ((1, 1, looks[0]), (0, -1, looks[1])):
            at = [edge[end] for edge in panel.wiring.edges]
            heights = np.bincount(at, amounts, minlength=len(nodes))
            axes.bar(nodes, sign * heights, width=0.8, linewidth=0.6, **look)
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.set_xlim(-0.8, widest - 0.2)  # nodes of all rows below one another
        step = math.ceil(widest / 30)
        axes.set_xticks(nodes[::step], panel.labels[::step], parse_math=False)
        axes.tick_params(axis='x', length=0)
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=not weighted))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{abs(value):g}'))
        axes.grid(axis='y', color='#e3e5e8', linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines['bottom'].set_visible(False)
        title = f'{panel.title}: {panel.wiring.num_edges} edges'
        axes.set_title(title, loc='left', parse_math=False)
    grid[-1].set_xlabel('node')
    fig.supylabel('sum of |edge weight|' if weighted else 'number of edges', fontsize=9)
    fig.legend(*grid[0].get_legend_handles_labels(), loc='outside upper right', ncols=2)
    return fig
