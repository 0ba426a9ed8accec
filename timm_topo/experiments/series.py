"""Trainings in folders of their own: what is done is kept, what was interrupted goes on."""

import copy
from collections.abc import Collection
from pathlib import Path

import yaml

from ..training.options import TrainingOptions, read_options

__all__ = ['FREE', 'pending', 'plain']

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
