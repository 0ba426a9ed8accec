"""Edge weights over the epochs of a run: small files, one per epoch (Janik & Nowak, Fig. 3)."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

__all__ = ['read_edge_weights', 'write_edge_weights']

_FOLDER = 'edge_weights'


def write_edge_weights(run: str | Path, done: int, weights: Mapping[str, Tensor]) -> Path:
    """Write ``edge_weights/0007.npz`` in the folder of a run; files of later epochs go.

    Args:
        run: Folder of the run.
        done: Epochs that are done; 0 before training.
        weights: ``(E,)`` by stage name.
    """
    folder = Path(run) / _FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob('*.npz'):
        if path.stem.isdecimal() and int(path.stem) > done:  # of a run that this one resumes
            path.unlink()
    path = folder / f'{done:04d}.npz'
    arrays = {name: value.detach().float().cpu().numpy() for name, value in weights.items()}
    part = path.with_suffix('.part')
    with open(part, 'wb') as file:
        np.savez(file, **arrays)
    os.replace(part, path)
    return path


def read_edge_weights(run: str | Path) -> tuple[list[int], dict[str, np.ndarray]]:
    """What :func:`write_edge_weights` wrote.

    Args:
        run: Folder of the run.

    Returns:
        Numbers of epochs done, ascending, T of them; and weights ``(T, E)`` by stage name.

    Raises:
        FileNotFoundError: There are none.
        ValueError: A file is damaged, or the files are of different networks.
    """
    paths = [path for path in (Path(run) / _FOLDER).glob('*.npz') if path.stem.isdecimal()]
    paths.sort(key=lambda path: int(path.stem))
    if not paths:
        raise FileNotFoundError(
            f'{run} has no {_FOLDER}/*.npz; a run of tools/train.py writes them'
        )
    rows = []
    for path in paths:
        try:
            with np.load(path, allow_pickle=False) as stored:
                rows.append({name: stored[name] for name in stored.files})
        except Exception as error:  # a damaged archive makes numpy raise almost anything
            raise ValueError(f'{path} is truncated or no archive of weights: {error}') from None
    shapes = [{name: value.shape for name, value in row.items()} for row in rows]
    for path, shape in zip(paths, shapes):
        if shape != shapes[0]:
            raise ValueError(f'{path} is of another network than {paths[0].name}')
    stacked = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return [int(path.stem) for path in paths], stacked
