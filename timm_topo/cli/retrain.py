"""Train the wiring of a checkpoint again; behind -- come options of tools/train.py.

--weights says what becomes of its weights: fresh ones everywhere (reset), fresh ones but for the
edge weights, which learn on (keep) or stay (frozen), or all of them, trained on (finetune,
finetune-frozen). With --snapshots, the edge weights that a run had after so many epochs are frozen
and the rest is trained from scratch, once for each (TopoNet, section 4.5, Fig. 5). Finished work
is kept: the same command goes on where it was.

examples:
  topo retrain pruned -o output/again --weights frozen -- --dataset digits --epochs 20
  topo retrain output/RUN -o output/process --snapshots 0 5 10 20
"""

import argparse
import shutil
from pathlib import Path

import timm_topo

from ..analysis.tables import read_numbers
from ..experiments.cache import FREE, pending
from ..experiments.process import retrain_snapshots
from ..training.loop import train
from ..training.options import epochs_done, parse_args
from .common import add_network, network, table

TRAINS = True
RESUMES = '; the same command goes on where it was'


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_network(parser)
    parser.add_argument('-o', '--output', type=Path, required=True, metavar='FOLDER')
    parser.add_argument(
        '--weights', choices=('reset', 'keep', 'frozen', 'finetune', 'finetune-frozen'),
        help='default: reset',
    )  # fmt: skip
    parser.add_argument(
        '--snapshots', type=epochs_done, nargs='*', metavar='EPOCH',
        help='of a run: retrain with the edge weights after these epochs (none named: five)',
    )  # fmt: skip
    parser.add_argument('--seeds', type=int, nargs='+', help='one training each, with --snapshots')


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Options that do not go together."""
    if args.snapshots is not None and args.weights not in (None, 'frozen'):
        parser.error(f'--snapshots freezes edge weights: --weights {args.weights} does not fit')
    if args.snapshots is None and args.seeds:
        parser.error('--seeds goes with --snapshots; for one training: -- --seed N')
    if args.snapshots is None and not args.training:
        parser.error('give options of tools/train.py behind --: -- --dataset NAME --epochs N')


def run(args: argparse.Namespace) -> dict:
    """Train once, or once per snapshot; the accuracies."""
    if args.snapshots is None:
        return _once(args)
    from .. import plot

    defaults = Path(args.network) / 'args.yaml'
    options = None
    if args.training and defaults.is_file():
        options = parse_args(args.training, defaults)
    rows = retrain_snapshots(
        args.network, args.snapshots or None, options, args.output, args.seeds or (None,)
    )
    figure = plot.save_figure(plot.retrained(rows), args.output / 'process.svg')
    return {'rows': rows, 'figure': figure, 'output': args.output}


def _once(args: argparse.Namespace) -> dict:
    folder = args.output.resolve()
    source = Path(args.network)
    if (source / 'args.yaml').is_file() and not (source / 'config.json').exists():
        source = source / 'model'
    options = parse_args(args.training)
    converted = source.is_file()
    if converted:  # weights: as a saved network
        source = folder.parent / f'.{folder.name}-from'
        timm_topo.save(network(args).cpu(), source)
    changes = dict(from_saved=str(source), from_saved_weights=args.weights or 'reset')
    try:
        pending_args = pending(folder, options, FREE, **changes)
        if pending_args is not None:
            train(pending_args)
    finally:
        if converted and not folder.exists():  # refused: nothing to go on with
            shutil.rmtree(source)
    epochs = read_numbers(folder / 'summary.csv')
    best = max(epochs, key=lambda row: row['eval_top1'])
    return {
        'output': folder,
        'model': folder / 'model',
        'epochs': len(epochs),
        'top1': epochs[-1]['eval_top1'],
        'best_top1': best['eval_top1'],
        'best_epoch': best['epoch'] + 1,
    }


def text(result: dict) -> str:
    """A table of snapshots, or one line."""
    if 'rows' in result:
        columns = ['epoch', 'seed', 'top1', 'edges', 'mean_abs_weight']
        return f'{table(result["rows"], columns)}\n\nwritten: {result["output"]}'
    return (
        f'top-1 {result["top1"]:.2f}% after {result["epochs"]} epochs, best '
        f'{result["best_top1"]:.2f}% after {result["best_epoch"]}; saved: {result["model"]}'
    )
