"""How a network adapts to data sets (Janik & Nowak, section 4), from training to figures.

For every data set and seed: train the full graph, sweep thresholds, prune at one, train the rest
from scratch, with as many channels and with as many parameters as before. Then results.csv,
sweep.csv, characteristics.csv, tables, and figures like the paper's 2 to 6. Finished work is kept:
the same command goes on where it was. Behind -- come options of topo train, for all trainings.

examples:
  topo study -o output/study --data easy=colour/digits hard=tiles/digits --seeds 0 1 2
  topo study -o output/study --data mnist=idx@MNIST -c dagnet.yaml -- --epochs 20 --amp
"""

import argparse
from pathlib import Path

from ..analysis.compare import THRESHOLDS
from ..training.options import parse_args

TRAINS = True
RESUMES = '; the same command goes on where it was'
_OURS = {
    '--dataset', '--data-dir', '--seed', '--save', '--output', '--experiment', '--resume',
    '--from-saved', '--from-saved-weights', '--fit-parameters', '--snapshot',
}  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument('-o', '--output', type=Path, required=True, metavar='FOLDER')
    parser.add_argument(
        '--data', nargs='+', type=_data, required=True, metavar='LABEL=NAME[@DIR]',
        help='data sets as for --dataset, with their folders',
    )  # fmt: skip
    parser.add_argument(
        '--seeds', nargs='+', type=int, default=[0], metavar='N', help='default: %(default)s'
    )
    parser.add_argument(
        '--threshold', type=float, default=0.006, metavar='TAU',
        help='for the networks that are trained again (default: %(default)s)',
    )  # fmt: skip
    parser.add_argument(
        '--thresholds', nargs='+', type=float, default=THRESHOLDS, metavar='TAU',
        help='of the sweep (default: %(default)s)',
    )  # fmt: skip
    parser.add_argument(
        '--no-fold', dest='fold', action='store_false',
        help='nodes that nobody feeds just go, as in the paper (default: constants replace them)',
    )  # fmt: skip
    parser.add_argument('-c', '--config', metavar='FILE', help='as for topo train')


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Options that do not go together, and those of this command alone."""
    if len(dict(args.data)) < len(args.data) or len(set(args.seeds)) < len(args.seeds):
        parser.error('a label or a seed is given twice')
    chosen = {option.partition('=')[0] for option in args.training or ()}
    if chosen := sorted(_OURS & chosen):
        parser.error(f'a study chooses {", ".join(chosen)} itself')


def run(args: argparse.Namespace) -> dict:
    """Run the study; its tables."""
    options = parse_args([*(['-c', args.config] if args.config else []), *(args.training or ())])
    from ..experiments.study import Study

    study = Study(
        output=args.output,
        data=dict(args.data),
        seeds=args.seeds,
        options=options,
        threshold=args.threshold,
        thresholds=args.thresholds,
        fold=args.fold,
    )
    return {'tables': study.run(), 'output': args.output}


def _data(text: str) -> tuple[str, tuple[str, str | None]]:
    label, _, place = text.partition('=')
    name, _, folder = place.partition('@')
    if not place or label in ('', '.', '..') or set(label) & set('/:'):
        raise argparse.ArgumentTypeError(f'must be LABEL=NAME or LABEL=NAME@DIR, got {text!r}')
    return label, (name, folder or None)


def text(result: dict) -> str:
    """The tables."""
    return f'{result["tables"]}\nwritten: {result["output"]}'
