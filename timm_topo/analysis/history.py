"""Edge weights over a run: small files, one per snapshot (Janik & Nowak, Fig. 3; TopoNet, 4.5)."""

import math
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..files import replacing

__all__ = [
    'read_edge_weights',
    'read_snapshot',
    'snapshot_name',
    'snapshot_updates',
    'trim_edge_weights',
    'write_edge_weights',
]

_FOLDER = 'edge_weights'
_MANY = 20  # epochs that a message tells one by one


def snapshot_name(done: float) -> str:
    """``'0007'`` of 7 epochs, ``'0007.250'`` of 7.25: names have three decimals or none.

    Args:
        done: Epochs that are done; 0 before training.

    Raises:
        ValueError: A number below 0, or none.
    """
    if not (math.isfinite(done) and done >= 0):
        raise ValueError(f'a number of epochs is finite and >= 0, got {done}')
    epochs, thousandths = divmod(round(done * 1000), 1000)
    return f'{epochs:04d}.{thousandths:03d}' if thousandths else f'{epochs:04d}'


def snapshot_updates(epoch: int, updates: int, interval: float) -> dict[int, float]:
    """After which updates of an epoch a snapshot is due.

    A snapshot is due every ``interval`` epochs, counted from the start of the run, at the nearest
    update. An update has one at most, the nearest; that at the end of an epoch is called by it.

    Args:
        epoch: Number of the epoch, from 0.
        updates: Updates in an epoch.
        interval: Epochs from one to the next, at least 0.001.

    Returns:
        By number of the update in the epoch, from 1: epochs done, to three decimals; an int at the
        end of the epoch.

    >>> snapshot_updates(epoch=7, updates=40, interval=0.25)
    {10: 7.25, 20: 7.5, 30: 7.75, 40: 8}
    >>> snapshot_updates(epoch=7, updates=40, interval=3), snapshot_updates(8, 40, 3)
    ({}, {40: 9})
    """
    due, off = {}, {}
    first, last = (math.floor(end / interval) for end in (epoch, epoch + 1))
    for count in range(first, last + 2):  # the first one behind may still be nearest to the end
        time = round(count * interval * 1000) - 1000 * epoch  # in thousandths of this epoch
        update = (2 * time * updates + 1000) // 2000  # in whole numbers: rounding cannot drift
        distance = abs(time * updates - 1000 * update)
        if 0 < update <= updates and distance < off.get(update, math.inf):
            due[update] = epoch + 1 if update == updates else (1000 * epoch + time) / 1000
            off[update] = distance
    return due


def write_edge_weights(run: str | Path, done: float, weights: Mapping[str, Tensor]) -> Path:
    """Write ``edge_weights/0007.npz`` in the folder of a run; files of later epochs go.

    Args:
        run: Folder of the run.
        done: Epochs that are done, to three decimals (``0007.250.npz``); 0 before training.
        weights: ``(E,)`` by stage name.
    """
    path = Path(run) / _FOLDER / f'{snapshot_name(done)}.npz'
    trim_edge_weights(run, done)
    arrays = {name: value.detach().float().cpu().numpy() for name, value in weights.items()}
    with replacing(path) as part:
        np.savez(part, **arrays)
    return path


def trim_edge_weights(run: str | Path, done: float) -> None:
    """Remove what was written after ``done`` epochs, by a run that another one resumes."""
    for number, path in _files(run).items():
        if number > round(done, 3):
            path.unlink()


def read_edge_weights(run: str | Path) -> tuple[list[float], dict[str, np.ndarray]]:
    """What :func:`write_edge_weights` wrote.

    Args:
        run: Folder of the run.

    Returns:
        Numbers of epochs done, ascending, T of them, ints where they are whole; and weights
        ``(T, E)`` by stage name. Where a file lacks a stage that others have, as its weights depend
        on the image and have no mean within an epoch, they are NaN.

    Raises:
        FileNotFoundError: There are none.
        ValueError: A file is damaged, or the files are of different networks.
    """
    files = _some_files(run)
    rows = [_read(path) for path in files.values()]
    sizes = {}
    for path, row in zip(files.values(), rows):
        own = {name: len(value) for name, value in row.items()}
        if sizes and not (own.items() <= sizes.items() or own.items() >= sizes.items()):
            raise ValueError(f'{path} is of another network than {next(iter(files.values())).name}')
        sizes.update(own)
    stacked = {
        name: np.stack([row.get(name, np.full(size, np.nan, np.float32)) for row in rows])
        for name, size in sizes.items()
    }
    return list(files), stacked


def read_snapshot(run: str | Path, done: float) -> dict[str, Tensor]:
    """Edge weights ``(E,)`` by stage name, as they were after ``done`` epochs.

    Args:
        run: Folder of the run.
        done: Epochs, to three decimals; 0 is before training.

    Raises:
        FileNotFoundError: There is no such snapshot, or none at all.
        ValueError: The file is damaged.
    """
    files = _some_files(run)
    path = files.get(round(done, 3))
    if path is None:
        raise FileNotFoundError(
            f'{run} has no edge weights after {done:g} epochs, but after {_told(list(files))}'
        )
    return {name: torch.from_numpy(value) for name, value in _read(path).items()}


def _told(numbers: list[float]) -> str:
    texts = [f'{number:.10g}' for number in numbers]
    if len(texts) > _MANY:
        texts[3:-3] = ['...']
    return ', '.join(texts)


def _files(run: str | Path) -> dict[float, Path]:
    """Files by number of epochs done, ascending."""
    paths = [
        path
        for path in (Path(run) / _FOLDER).glob('*.npz')
        if re.fullmatch(r'\d+(\.\d{3})?', path.stem)
    ]
    numbers = [float(path.stem) for path in paths]
    found = [(int(n) if n.is_integer() else n, path) for n, path in zip(numbers, paths)]
    return dict(sorted(found))


def _some_files(run: str | Path) -> dict[float, Path]:
    files = _files(run)
    if not files:
        raise FileNotFoundError(
            f'{run} has no {_FOLDER}/*.npz; a run of tools/train.py writes them'
        )
    return files


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except Exception as error:  # a damaged archive makes numpy raise almost anything
        raise ValueError(f'{path} is truncated or no archive of weights: {error}') from None
    for name, value in arrays.items():
        if value.ndim != 1 or value.dtype.kind != 'f':
            raise ValueError(
                f'{path} is no archive of weights: {name} is {value.shape} of {value.dtype}'
            )
    return arrays
