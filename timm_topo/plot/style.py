"""What all pictures share: style, colours, and checks of what is to be shown."""

import io
import math
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.figure import Figure

from ..files import replacing

STYLE = {
    'font.size': 9,
    'axes.titlesize': 10,
    'axes.edgecolor': '#5a6068',
    'axes.spines.top': False,
    'axes.spines.right': False,
    'figure.constrained_layout.use': True,
    'hatch.linewidth': 0.5,
    'legend.frameon': False,
    'lines.markersize': 4,
    'svg.hashsalt': 'timm_topo',  # fixed, so that the same figure has the same bytes
}
POSITIVE, NEGATIVE, INK, FAINT = '#b2182b', '#2166ac', '#1c1e21', '#c4c8cd'
#: Colour (Okabe and Ito), line and marker of the n-th series.
LOOKS = (
    ('#0072b2', '-', 'o'),
    ('#d55e00', '--', 's'),
    ('#009e73', '-.', '^'),
    ('#cc79a7', ':', 'D'),
    ('#5a6068', (0, (7, 2)), 'v'),
    ('#e69f00', (0, (1, 3)), 'P'),
)


def styled(draw: Callable) -> Callable:
    """Run with our style over matplotlib's defaults, whatever the user's settings are."""

    @wraps(draw)
    def wrapper(*args, **kwargs):
        with style.context(['default', STYLE]):
            return draw(*args, **kwargs)

    return wrapper


@styled
def to_svg(fig: Figure) -> str:
    """SVG text of a figure, transparent; figures drawn from the same input have the same text."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(('Date', 'Creator', 'Format', 'Type'))
    fig.savefig(buffer, format='svg', transparent=True, metadata=nothing)
    return buffer.getvalue()


@styled
def save_figure(fig: Figure, path: str | Path) -> Path:
    """Write a figure on white, in the format that the file's suffix names.

    Raises:
        ValueError: matplotlib does not know the format.
    """
    path = Path(path)
    kind = path.suffix[1:].lower()
    metadata = {'Date': None} if kind == 'svg' else None
    with replacing(path) as part:
        fig.savefig(part, format=kind or 'svg', dpi=150, facecolor='white', metadata=metadata)
    return path


def number(value: Any, column: str) -> float:
    """A finite float, or NaN for a gap."""
    if value is None or value == '':
        return math.nan
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f'column {column!r} holds {value!r}, which is not a number') from None
    return number if math.isfinite(number) else math.nan


def columns_for(count: int) -> int:
    """Small plots per row."""
    return 2 if count == 4 else min(count, 3)


#: How many series a figure tells apart.
MOST_SERIES = len(LOOKS)


def check_series(series: Mapping, name: str) -> None:
    """Refuse an empty series, and more than a figure tells apart."""
    if not 1 <= len(series) <= len(LOOKS):
        raise ValueError(f'{name} shows 1 to {len(LOOKS)} series, got {len(series)}')
    for label, values in series.items():
        if len(values) == 0:
            raise ValueError(f'{label!r} is empty')


def finite_vector(weights: Any, what: str) -> np.ndarray:
    """A finite float array ``(E,)`` from a sequence, array or tensor."""
    if hasattr(weights, 'detach'):
        weights = weights.detach().float().cpu().numpy()
    vector = np.asarray(weights, dtype=float)
    if vector.ndim != 1:
        raise ValueError(f'{what} needs weights of shape (E,), got {vector.shape}')
    if not np.isfinite(vector).all():
        raise ValueError(
            f'{what} has {int((~np.isfinite(vector)).sum())} weights that are NaN or inf'
        )
    return vector


def limit_of(limit: float | None, largest: float) -> float:
    """The given limit, or the largest value; 1 where all are 0."""
    if limit is None:
        return float(largest) or 1.0
    if not (math.isfinite(limit) and limit > 0):
        raise ValueError(f'limit must be finite and positive, got {limit}')
    return float(limit)
