"""Edge weights as they are learned (TopoNet, Fig. 5)."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.animation import PillowWriter
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..files import replacing
from ..wiring import Wiring
from .damage import mean_and_range, required
from .layers import UNIT, Layout, draw_layers, layers, set_weights, width_of
from .style import LOOKS, finite_vector, limit_of, number, styled
from .wirings import COLOURS, Panel, adjacency, draw_matrix, edge_key, matrix_key

_FASTEST = 50  # frames per second that viewers show
_SIDE = 3.0  # inches of a matrix


@styled
def process_strip(
    epochs: Sequence[float], weights: Any, wiring: Wiring, title: str = '', count: int = 6
) -> Figure:
    """Adjacency matrices of one stage over training, on one scale (TopoNet, Fig. 5 left).

    Args:
        epochs: Numbers of epochs done, T of them, ascending; fractions within an epoch.
        weights: ``(T, E)`` in the order of ``wiring.edges``.
        wiring: The stage.
        title: Heading.
        count: How many of the T to show, evenly spread from the first to the last; all if there
            are fewer.

    Raises:
        ValueError: Epochs that do not ascend, weights of another shape or not finite, or ``count``
            below 2.
    """
    epochs, weights = _snapshots(epochs, weights, wiring)
    if count < 2:
        raise ValueError(f'count must be at least 2 (first and last), got {count}')
    count = min(count, len(epochs))
    chosen = [round(i) for i in np.linspace(0, len(epochs) - 1, count)]
    fig = adjacency([Panel(_done(epochs[i]), wiring, weights[i]) for i in chosen])
    fig.suptitle(title, fontsize=10, parse_math=False)
    return fig


@styled
def retrained(rows: Sequence[Mapping]) -> Figure:
    """Accuracy of training anew with the edge weights of an epoch, frozen (TopoNet, Fig. 5 right).

    Several rows of one epoch, such as of several seeds, are one point: their mean, with a bar from
    lowest to highest.

    Args:
        rows: Each with ``epoch``, when the weights were taken, and ``top1``; numbers or text, gaps
            of ``top1`` empty or None.

    Raises:
        ValueError: No row with an accuracy, a column that is missing, or what is not a number.
    """
    points = {}
    for i, row in enumerate(rows):
        epoch = required(row, 'epoch', f'row {i}')
        if 'top1' not in row:
            raise ValueError(f"row {i} has no column 'top1'; there are: {', '.join(row)}")
        points.setdefault(epoch, []).append(number(row['top1'], 'top1'))
    if np.isnan([value for values in points.values() for value in values]).all():
        raise ValueError('retrained needs at least one row with a value of top1, got none')
    fig = Figure(figsize=(4.5, 3.2))
    axes = fig.subplots()
    colour, line, marker = LOOKS[0]
    mean_and_range(axes, points, dict(color=colour, linestyle=line, marker=marker))
    axes.set_xlabel('epoch of the edge weights')
    axes.set_ylabel('top-1 after training anew (%)')
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.grid(axis='y', color='#e3e5e8', linewidth=0.8)
    return fig


@styled
def animate(
    epochs: Sequence[float],
    weights: Any,
    wiring: Wiring | Mapping[str, Wiring],
    path: str | Path,
    seconds: float = 6.0,
) -> Path:
    """Write an animation of edge weights over training: a frame per snapshot, on one scale.

    One stage is shown as matrix and as graph in layers, several as matrices.

    Args:
        epochs: Numbers of epochs done, T of them, ascending; fractions within an epoch.
        weights: ``(T, E)`` in the order of ``wiring.edges``; of several stages a mapping by name.
        wiring: The stage; of several stages a mapping by the same names.
        path: A file ``.gif``, replaced when all is drawn.
        seconds: How long it runs; at most 50 frames are shown in a second.

    Returns:
        The file.

    Raises:
        ValueError: Another suffix, ``seconds`` not positive, stages that differ, epochs that do
            not ascend, or weights of another shape or not finite.
    """
    path = Path(path)
    if path.suffix.lower() != '.gif':
        raise ValueError(f'animate writes .gif only, got {path.name}')
    if not 0 < seconds < float('inf'):
        raise ValueError(f'seconds must be finite and positive, got {seconds}')
    epochs, stages = _stages(epochs, weights, wiring)
    limit = limit_of(None, max(np.abs(history).max() for _, history in stages.values()))
    if len(stages) == 1:
        ((name, (wiring, history)),) = stages.items()
        fig, draw = _one(name, wiring, history, limit)
    else:
        fig, draw = _several(stages, limit)
    FigureCanvasAgg(fig)
    writer = PillowWriter(fps=min(len(epochs) / seconds, _FASTEST))
    with replacing(path) as part:
        writer.setup(fig, part, dpi=100)
        for t, epoch in enumerate(epochs):
            fig.suptitle(_done(epoch), fontsize=11)
            draw(t)
            if t == 0:
                fig.draw_without_rendering()
                fig.set_layout_engine('none')  # nothing moves from here on
            writer.grab_frame(facecolor='white')
        writer.finish()
    return path


def _one(name: str, wiring: Wiring, history: np.ndarray, limit: float) -> tuple[Figure, Callable]:
    """Matrix and graph of a stage, and what draws snapshot t."""
    norm, order = Normalize(-limit, limit), layers(wiring)
    width, step = width_of([order], 1)
    layout = Layout(wiring, order, step)
    reaches = [layout.reach(weights) for weights in history]
    low, high = min(low for low, _ in reaches), max(high for _, high in reaches)
    height = float(np.clip(UNIT * (high - low), 2.6, 6))
    fig = Figure(figsize=(_SIDE + 1.2 + width, height + 1.1))
    left, right = fig.subfigures(1, 2, width_ratios=[_SIDE + 1.2, width])
    matrix, graph = left.subplots(), right.subplots()
    left.colorbar(ScalarMappable(norm, COLOURS), ax=matrix, label='edge weight', shrink=0.65)
    lowest = Panel(name, wiring, history.min(0))  # negative, if the edge ever is
    matrix_key(left, [lowest], norm)
    edge_key(right, [lowest], limit, 'edge weight')
    edges = draw_layers(graph, lowest, layout, limit, height / (high - low))
    graph.set(xlim=(-0.7 / step, len(order) - 1 + 0.7 / step), ylim=(low, high))
    graph.set_axis_off()

    def draw(t: int) -> None:
        matrix.clear()
        draw_matrix(matrix, Panel(name, wiring, history[t]), norm, _SIDE)
        set_weights(edges, history[t], layout, limit)

    return fig, draw


def _several(stages: Mapping[str, tuple], limit: float) -> tuple[Figure, Callable]:
    """Matrices of stages, and what draws snapshot t."""
    lowest = [Panel(name, wiring, history.min(0)) for name, (wiring, history) in stages.items()]
    fig = adjacency(lowest, limit=limit)  # with all keys that any snapshot needs

    def draw(t: int) -> None:
        for axes, (name, (wiring, history)) in zip(fig.axes, stages.items()):
            axes.clear()
            draw_matrix(axes, Panel(name, wiring, history[t]), Normalize(-limit, limit), _SIDE)

    return fig, draw


def _stages(epochs: Sequence[float], weights: Any, wiring: Any) -> tuple[list[float], dict]:
    """Epochs, and wiring and weights by name of a stage."""
    if isinstance(wiring, Mapping):
        known = list(weights) if isinstance(weights, Mapping) else []
        if not wiring or set(known) != set(wiring):
            raise ValueError(f'wirings of {list(wiring)} need weights of these, got {known}')
    elif isinstance(weights, Mapping):
        raise ValueError(f'weights of {list(weights)} need a wiring of each, got {wiring}')
    else:
        wiring, weights = {'': wiring}, {'': weights}
    done = {name: _snapshots(epochs, weights[name], wiring[name]) for name in wiring}
    stages = {name: (wiring[name], history) for name, (_, history) in done.items()}
    return next(iter(done.values()))[0], stages


def _snapshots(
    epochs: Sequence[float], weights: Any, wiring: Wiring
) -> tuple[list[float], np.ndarray]:
    """Epochs, and weights as a float array ``(T, E)``."""
    epochs = [number(epoch, 'epochs') for epoch in epochs]
    if not epochs or not all(a < b for a, b in zip(epochs, [*epochs[1:], float('inf')])):
        raise ValueError(f'epochs must be finite and ascend, got {epochs}')
    if hasattr(weights, 'detach'):
        weights = weights.detach().float().cpu().numpy()
    weights = np.asarray(weights, dtype=float)
    if weights.shape != (len(epochs), wiring.num_edges):
        raise ValueError(
            f'{len(epochs)} epochs of {wiring} need weights of shape '
            f'({len(epochs)}, {wiring.num_edges}), got {weights.shape}'
        )
    for epoch, row in zip(epochs, weights):
        finite_vector(row, f'epoch {epoch:g}')
    return epochs, weights


def _done(epoch: float) -> str:
    return f'{epoch:g} epoch' if epoch == 1 else f'{epoch:g} epochs'
