"""Topologies of the optimization process, trained from scratch (TopoNet, section 4.5, Fig. 5)."""

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..analysis.history import read_edge_weights, read_snapshot, snapshot_name
from ..analysis.process import set_edge_weights
from ..analysis.tables import read_csv, write_csv
from ..checkpoint import load, saved_config
from ..files import locked
from ..schema import without_sources
from ..stages import is_routed
from ..training.build import NO_WEIGHTS
from ..training.loop import train
from ..training.options import TrainingOptions, parse_args, read_options
from .cache import FREE, pending, plain

__all__ = ['retrain_snapshots']

_CHOSEN = 5  # snapshots, where none are named
#: Options of the run that its networks share: the network, the data, how images are prepared.
_SHARED = (
    'model', 'rewire', 'rewire_kwargs', 'num_classes', 'dataset', 'train_split', 'val_split',
    'img_size', 'input_size', 'in_chans', 'crop_pct', 'mean', 'std', 'interpolation',
)  # fmt: skip
_FREE = FREE | {'from_saved'}  # the run, which may move; its weights are compared instead


def retrain_snapshots(
    run: str | Path,
    epochs: Sequence[float] | None,
    options: TrainingOptions | None,
    output: str | Path,
    seeds: Sequence[int | None] = (None,),
) -> list[dict]:
    """Train a network from scratch with the edge weights of every snapshot, frozen.

    ``OUTPUT/epoch_0007`` is the training with the edge weights that the run had after 7 epochs, or
    ``OUTPUT/epoch_0007/seed_3`` with seeds. Every training that is done is kept and an interrupted
    one is gone on with. ``OUTPUT/process.csv`` gets the rows as they come. Networks with the same
    seed start from the same weights and see the same images.

    Args:
        run: Folder of a finished run whose edge weights are those of a graph, not of an image.
        epochs: Numbers of epochs that were done; None: five of those there are, from the first to
            the last, as evenly as there are.
        options: Of all trainings, None: those of the run. To change some of them:
            ``parse_args(['--epochs', '20'], defaults=RUN / 'args.yaml')``. What the run itself
            started from, where it went and what it saved is not taken over.
        output: Where to.
        seeds: One training for each; None, on its own: that of the options.

    Returns:
        A row per snapshot and seed: ``epoch``; ``seed``; ``top1`` of the last epoch in percent;
        ``edges``, those that do not weigh 0; ``mean_abs_weight``, the mean of |edge weight|.

    Raises:
        FileNotFoundError: The run is not finished or has no such snapshot.
        ValueError: Model, data or preprocessing differ from those of the run; its weights depend on
            the image; a training that is there was made with other options or other weights; no
            epochs or seeds; or as for :func:`timm_topo.training.loop.train`.
    """
    run, output = Path(run), Path(output)
    seeds = list(dict.fromkeys(seeds))
    if not seeds or (None in seeds and len(seeds) > 1):
        raise ValueError(f'seeds are numbers, or None on its own, got {seeds}')
    for name in ('model', 'args.yaml'):
        if not (run / name).exists():
            raise FileNotFoundError(f'{run} is no finished run: {name} is missing')
    there, _ = read_edge_weights(run)
    chosen = _spread(there, _CHOSEN) if epochs is None else list(dict.fromkeys(epochs))
    if not chosen:
        raise ValueError('no epochs to retrain: name some, or None for some of those there are')
    weights = {epoch: read_snapshot(run, epoch) for epoch in chosen}
    _check_network(run, weights)
    options = _options(run, options)
    rows = []
    with locked(output):
        for epoch, of_epoch in weights.items():
            for seed in seeds:
                folder = output / f'epoch_{snapshot_name(epoch)}'
                if seed is not None:
                    folder /= f'seed_{seed}'
                args = dict(snapshot=epoch, seed=options.seed if seed is None else seed)
                _fit(folder, options, of_epoch, args)
                rows.append(_row(folder, of_epoch, epoch, args['seed']))
                write_csv(output / 'process.csv', rows)
    return rows


def _spread(numbers: Sequence[float], count: int) -> list[float]:
    """The first, the last, and those nearest to even steps between."""
    first, last = numbers[0], numbers[-1]
    steps = (first + (last - first) * k / (count - 1) for k in range(count))
    return list(dict.fromkeys(min(numbers, key=lambda n: abs(n - step)) for step in steps))


def _check_network(run: Path, weights: dict[float, dict[str, Tensor]]) -> None:
    """What would stop a later training stops the first."""
    model = load(run / 'model')
    if is_routed(model):
        raise ValueError(f'edge weights of {run} depend on the image and cannot be frozen')
    for epoch, of_epoch in weights.items():
        try:
            set_edge_weights(model, of_epoch)
        except ValueError as error:
            raise ValueError(
                f'the edge weights that {run} had after {epoch:.10g} epochs do not fit its '
                f'network: {error}'
            ) from None


def _options(run: Path, options: TrainingOptions | None) -> TrainingOptions:
    """Options of all trainings, from the run's and those that were given."""
    made = read_options(run / 'args.yaml')
    asked = parse_args([], run / 'args.yaml') if options is None else copy.copy(options)
    for name in _SHARED:
        if name in made and made[name] != plain(getattr(asked, name)):
            raise ValueError(
                f'{run} was trained with {name} {made[name]!r}, not {getattr(asked, name)!r}'
            )
    saved = saved_config(run / 'model').get('model_args') or {}
    before, own = made.get('model_kwargs') or {}, {}
    for name, value in without_sources(asked.model_kwargs).items():
        if name not in saved or name not in before:
            own[name] = value  # no part of what is saved, or to be compared with it when it is read
        elif before[name] != plain(value):
            raise ValueError(f'{run} was trained with {name} {before[name]!r}, not {value!r}')
    asked.model_kwargs = own
    asked.from_saved, asked.from_saved_weights = str(run / 'model'), 'frozen'
    asked.rewire, asked.rewire_kwargs, asked.fit_parameters = None, {}, None
    asked.save, asked.snapshot_interval, asked.seed_wiring = 'last', 1.0, False
    vars(asked).update(NO_WEIGHTS)
    return asked


def _fit(folder: Path, options: TrainingOptions, weights: dict[str, Tensor], changes: dict) -> None:
    """One training, gone on with, or left alone where it is done."""
    args = pending(folder, options, _FREE, **changes)
    try:
        before = read_snapshot(folder, 0)
    except FileNotFoundError:  # not started
        before = weights
    if not all(torch.equal(before[name], value) for name, value in weights.items()):
        raise ValueError(
            f'{folder} was made with other edge weights than those of {options.from_saved} after '
            f'{changes["snapshot"]:.10g} epochs: choose another folder'
        )
    if args is not None:
        print(f'== {folder}', flush=True)
        train(args)


def _row(folder: Path, weights: dict[str, Tensor], epoch: float, seed: int) -> dict:
    """What a training gave."""
    every = torch.cat(list(weights.values()))
    return {
        'epoch': epoch,
        'seed': seed,
        'top1': float(read_csv(folder / 'summary.csv')[-1]['eval_top1']),
        'edges': int(every.count_nonzero()),
        'mean_abs_weight': every.abs().mean().item(),
    }
