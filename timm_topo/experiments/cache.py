"""What experiments keep: rows of measurements and folders of trainings. The rest is done again."""

import copy
import hashlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import torch
import yaml
from torch import nn

from ..analysis.tables import read_numbers, write_csv
from ..stages import graph_stages
from ..training.options import TrainingOptions, read_options

__all__ = ['FREE', 'Rows', 'digest', 'pending', 'plain']

#: Options of a training that do not change what it gives, or name places that may move.
FREE = frozenset((
    'device', 'workers', 'log_interval', 'tensorboard', 'checkpoint_hist', 'output',
    'experiment', 'resume', 'validation_batch_size', 'snapshot_interval',
))  # fmt: skip


def pending(
    folder: Path, options: TrainingOptions, free: Collection[str] = FREE, **changes
) -> TrainingOptions | None:
    """Options for a training in ``folder`` that starts or goes on; None where it is done.

    Args:
        folder: Of the run.
        options: Of the training.
        free: Names of options that may differ from those the run was made with.
        **changes: Options of this training.

    Raises:
        ValueError: What is there was made with other options.
    """
    args = copy.deepcopy(options)
    args.output, args.experiment, args.resume = str(folder.parent), folder.name, 'auto'
    vars(args).update(changes)
    path = folder / 'args.yaml'
    if path.exists():
        made = read_options(path)
        for name in sorted(made.keys() & vars(args).keys() - set(free)):
            if made[name] != plain(vars(args)[name]):
                raise ValueError(
                    f'{folder} was made with {name} {made[name]}, not {vars(args)[name]}: choose '
                    'another folder'
                )
    return None if (folder / 'model').exists() else args


def plain(value):
    """A value as ``args.yaml`` gives it back: tuples become lists."""
    return yaml.safe_load(yaml.safe_dump(value))


class Rows:
    """Rows of a CSV file by key, written after each: what is there is not measured again.

    Args:
        path: The file; None: rows are kept in memory alone.
        key: Columns that tell rows apart.
    """

    def __init__(self, path: Path | None, key: Collection[str]):
        self.path, self.key = path, tuple(key)
        there = read_numbers(path) if path and path.exists() else ()
        self.known = {self._of(row): row for row in there}

    def get(self, measure: Callable[[], dict], **key) -> dict:
        """The row with these values; where it is not there, what ``measure`` returns and these."""
        if self._of(key) not in self.known:
            self.put({**key, **measure(), **key})
        return self.known[self._of(key)]

    def put(self, row: dict) -> None:
        """Keep a row, in place of another of its key."""
        self.known[self._of(row)] = row
        if self.path:
            write_csv(self.path, list(self.known.values()))

    def _of(self, row: Mapping) -> tuple:
        return tuple(row[name] for name in self.key)


def digest(model: nn.Module) -> str:
    """Of all weights and graphs: the same network has the same."""
    sha = hashlib.sha256()
    for name, stage in graph_stages(model, required=False).items():
        sha.update(f'{name} {type(stage.connectivity).__name__} {stage.wiring.edges}'.encode())
    for name, value in model.state_dict().items():
        sha.update(name.encode())
        sha.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:16]
