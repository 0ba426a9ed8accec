#!/usr/bin/env python
"""How a network adapts to data sets (Janik & Nowak, section 4), from training to figures.

``python tools/study.py -o output/study --data easy=colour/digits hard=tiles/digits --seeds 0 1 2
-c configs/classification/dagnet_digits.yaml``

For every data set and seed: train the full graph, sweep thresholds, prune at one, train what is
left from scratch, with as many channels and with as many parameters as before. Then results.csv,
sweep.csv, characteristics.csv, the tables on the console, and figures like the paper's 2 to 6. What
is done is kept: started again, a study goes on where it was. Options behind -- are those of
tools/train.py, for all trainings.
"""

import argparse
import sys
from pathlib import Path

import timm_topo  # noqa: F401  registers the models
from timm_topo.analysis.compare import THRESHOLDS
from timm_topo.training.options import parse_args

_OURS = {
    '--dataset', '--data-dir', '--seed', '--save', '--output', '--experiment', '--resume',
    '--from-saved', '--from-saved-weights', '--fit-parameters', '--snapshot',
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        usage='%(prog)s -o DIR --data LABEL=NAME[@DIR] ... [options] [-- TRAINING OPTIONS]',
        epilog='Behind -- come options of tools/train.py, for all trainings: -- --epochs 20 --amp',
    )
    parser.add_argument('-o', '--output', type=Path, required=True, metavar='DIR')
    parser.add_argument(
        '--data', nargs='+', type=_data, required=True, metavar='LABEL=NAME[@DIR]',
        help='data sets as for tools/train.py, with their folders',
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
    parser.add_argument('-c', '--config', metavar='FILE', help='as for tools/train.py')
    own, training = _split(sys.argv[1:])
    args = parser.parse_args(own)
    if len(dict(args.data)) < len(args.data) or len(set(args.seeds)) < len(args.seeds):
        parser.error('a label or a seed is given twice')
    if chosen := sorted(_OURS & {option.partition('=')[0] for option in training}):
        parser.error(f'a study chooses {", ".join(chosen)} itself')
    options = parse_args([*(['-c', args.config] if args.config else []), *training])
    from timm_topo.experiments.study import Study

    study = Study(
        output=args.output,
        data=dict(args.data),
        seeds=args.seeds,
        options=options,
        threshold=args.threshold,
        thresholds=args.thresholds,
    )
    print(study.run())
    print(f'written: {args.output}')
    return 0


def _data(text: str) -> tuple[str, tuple[str, str | None]]:
    label, _, place = text.partition('=')
    name, _, folder = place.partition('@')
    if not place or label in ('', '.', '..') or set(label) & set('/:'):
        raise argparse.ArgumentTypeError(f'must be LABEL=NAME or LABEL=NAME@DIR, got {text!r}')
    return label, (name, folder or None)


def _split(argv: list[str]) -> tuple[list[str], list[str]]:
    at = argv.index('--') if '--' in argv else len(argv)
    return argv[:at], argv[at + 1 :]


if __name__ == '__main__':
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit('\ninterrupted; the same command goes on where it was')
    except (FloatingPointError, ImportError, OSError, TypeError, ValueError) as error:
        sys.exit(f'error: {error}')
