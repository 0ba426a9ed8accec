"""Accuracy and size over thresholds, every one kept (Janik & Nowak, Fig. 2a)."""

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor, nn
from tqdm import tqdm

from ..analysis.compare import threshold_sweep
from .cache import Rows

__all__ = ['sweep']


def sweep(
    model: nn.Module,
    thresholds: Sequence[float],
    score: Callable[[nn.Module], float],
    path: Path | None = None,
    images: Tensor | None = None,
    fold: bool = True,
    **of,
) -> list[dict]:
    """Rows of :func:`timm_topo.analysis.compare.threshold_sweep`, one per threshold.

    Args:
        model: A trained model with graph stages; left as it is.
        thresholds: On the absolute edge weight.
        score: Accuracy of a model, say.
        path: A CSV file whose rows are taken over, and that is written after each; None: none.
        images: As for :func:`timm_topo.analysis.compare.threshold_sweep`.
        fold: Likewise.
        **of: Further columns, which tell this sweep from others in the file.
    """
    kept = Rows(path, (*of, 'threshold'))
    steps = tqdm(dict.fromkeys(thresholds), 'thresholds', leave=False, disable=None)

    def measure(threshold: float) -> dict:
        (row,) = threshold_sweep(model, [threshold], score, images, fold)
        return row

    return [kept.get(lambda t=t: measure(t), **of, threshold=t) for t in steps]
