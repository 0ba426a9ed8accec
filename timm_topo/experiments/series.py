"""Trainings in folders of their own: what is done is kept, what was interrupted goes on."""

import copy
from argparse import Namespace
from collections.abc import Collection
from pathlib import Path

import yaml

__all__ = ['FREE', 'pending', 'plain']

#: Options of a training that do not change what it gives, or name places that may move.
FREE = frozenset((
    'config', 'device', 'workers', 'log_interval', 'no_tensorboard', 'checkpoint_hist', 'output',
    'experiment', 'resume', 'validation_batch_size', 'snapshot_interval',
))  # fmt: skip


def pending(
    folder: Path, options: Namespace, free: Collection[str] = FREE, **changes
) -> Namespace | None:
    """Options for a training in ``folder`` that starts or goes on; None where it is done.

    Args:
        folder: Of the run.
        options: As from :func:`timm_topo.training.options.parse_args`.
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
        made = yaml.safe_load(path.read_text(encoding='utf-8')) or {}
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
