"""Checkpoints of a run: written as a whole, found again wherever it was killed, and mended."""

import os
import shutil
from pathlib import Path

import torch
from timm.utils import CheckpointSaver

from ..analysis.tables import read_csv
from ..files import writing

__all__ = ['checkpoint_of', 'mend', 'save_checkpoint']

_LAST, _NEXT, _BEST = 'last.pth.tar', 'tmp.pth.tar', 'model_best.pth.tar'


def checkpoint_of(folder: Path, resume: str) -> str:
    """The checkpoint to resume from (``''``: none).

    timm writes ``tmp``, removes ``last`` and gives ``tmp`` its name: killed in between, ``last`` is
    missing, and what would have been it is ``tmp``.

    Args:
        folder: Of the run.
        resume: A checkpoint; ``'auto'``: the run's newest, if it has one; ``''``: none.

    Raises:
        FileExistsError: The folder holds a run and nothing says to go on with it.
        FileNotFoundError: The checkpoint to resume from does not exist, or the run has lost all.
    """
    summary = folder / 'summary.csv'
    if resume and resume != 'auto':
        if not Path(resume).is_file():
            raise FileNotFoundError(f'no checkpoint {resume} to resume from')
        return resume
    if not resume:
        if summary.exists():
            raise FileExistsError(
                f'{folder} holds a run: go on with --resume auto, or choose another --experiment'
            )
        return ''
    if (folder / _LAST).is_file():
        return str(folder / _LAST)
    found = [*folder.glob('checkpoint-*.pth.tar'), folder / _NEXT]
    epochs = {path: _stored(path).get('epoch') for path in found}
    readable = [path for path, epoch in epochs.items() if isinstance(epoch, int)]
    if readable:
        return str(max(readable, key=epochs.get))
    done = len(read_csv(summary)) if summary.exists() else 0
    if done > 1:  # the first is written before its checkpoint
        raise FileNotFoundError(
            f'{folder} has done {done} epochs, but {_LAST} and all other checkpoints are gone: '
            'choose another --experiment'
        )
    return ''


def save_checkpoint(saver: CheckpointSaver, epoch: int, metric: float) -> None:
    """As ``saver`` does it; what cannot be written leaves nothing half written.

    Raises:
        OSError: It cannot be written.
    """
    part = Path(saver.checkpoint_dir) / _NEXT
    try:
        with writing(part):
            saver.save_checkpoint(epoch, metric)
    except OSError:
        if not _stored(part):
            part.unlink(missing_ok=True)
        raise


def mend(saver: CheckpointSaver, checkpoint: Path, needs_best: bool = True) -> None:
    """Take up what ``checkpoint`` says of the run, and do what follows its writing once more.

    timm gives a new checkpoint its names one after another: ``last``, ``checkpoint-N``,
    ``model_best``. Which of these steps were done before a kill does not matter here.

    Args:
        saver: Of the folder that the checkpoint is in.
        checkpoint: Which the run is resumed from.
        needs_best: Whether ``model_best`` has to be there.

    Raises:
        FileNotFoundError: The checkpoint of the best epoch is gone.
    """
    stored = _stored(checkpoint).get('saver')
    if stored is None:  # of an earlier timm, which tells why it starts afresh
        saver.load_state_dict_from_checkpoint(str(checkpoint))
        return
    folder = checkpoint.parent
    saver.load_state_dict({**stored, 'pending': (None, None)})
    if checkpoint.name != _NEXT:
        _link(checkpoint, folder / _NEXT)
    saver._save = lambda *args: None  # it is written
    saver.save_checkpoint(*stored['pending'])
    del saver._save
    best, epoch = folder / _BEST, saver.best_epoch
    if epoch is not None and _stored(best).get('epoch') != epoch:
        source = folder / f'checkpoint-{epoch}.pth.tar'
        if source.is_file():
            _link(source, best)
        elif needs_best:
            raise FileNotFoundError(
                f'{folder} has lost {_BEST}, of its best epoch {epoch + 1}, and {source.name}: '
                'go on with --save last, or choose another --experiment'
            )


def _link(source: Path, target: Path) -> None:
    """The same file by another name."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # not on this file system
        shutil.copy2(source, target)


def _stored(path: Path) -> dict:
    """What a checkpoint holds, tensors without values; nothing of one that is not whole."""
    try:
        stored = torch.load(path, map_location='meta', weights_only=True)
    except Exception:  # a damaged file makes torch.load raise almost anything
        return {}
    return stored if isinstance(stored, dict) else {}
