"""The course of training on a page: losses and accuracy, edge weights."""

from collections.abc import Mapping, Sequence

import numpy as np

from .. import plot
from ..stages import Stage
from .html import Report

__all__ = ['add_curves', 'add_snapshots']

_MEASURED = ('train_task_loss', 'train_sparsity', 'eval_top1')


def add_curves(page: Report, runs: Mapping[str, Sequence[Mapping]]) -> None:
    """Curves from the ``summary.csv`` rows of runs by name."""
    known = {key for rows in runs.values() for row in rows for key in row}
    page.figure(
        plot.curves(runs, [key for key in _MEASURED if key in known]),
        caption='Loss without the L1 term, the L1 sum, and accuracy, per epoch.',
        alt='Training curves',
    )


def add_snapshots(
    page: Report,
    stages: Mapping[str, Stage],
    epochs: Sequence[float],
    weights: Mapping[str, np.ndarray],
) -> None:
    """Edge weights ``(T, E)`` by stage name, after each of T numbers of epochs.

    Stages that have other edges by now are left out.
    """
    for name, history in weights.items():
        if len(epochs) > 1 and name in stages and history.shape[1] == stages[name].wiring.num_edges:
            page.figure(
                plot.process_strip(epochs, history, stages[name].wiring, title=name),
                caption=f'{name}: edge weights after so many epochs.',
                alt=f'Adjacency matrices of {name} over training',
            )
