"""Make a network faster: whole blocks go until a budget is met; then it is trained on.

A network with graphs loses nodes; a residual one of timm, by name or saved, loses blocks. What goes
is chosen by its effect on the loss of some training images and by its cost here: the time of the
deployed network on this device, or multiply-adds, or parameters. The result is a saved network for
timm_topo.load and topo export. Finished work is kept: the same command goes on where it was. Behind
-- come options of topo train, for the training afterwards.

examples:
  topo shrink output/RUN --time 0.7 --dataset digits -o shrunk
  topo shrink output/RUN --time 0.9 0.8 0.7 0.6 --dataset digits -o shrunk --epochs 0
  topo shrink output/RUN --drop 1 --dataset digits -o shrunk -- --lr 0.02 --crop-padding 4
"""

import argparse
from pathlib import Path

from ..analysis.rankings import RANKINGS
from ..analysis.shrink import SEARCHES
from ..training.options import parse_args, positive
from .common import (
    add_data,
    add_network,
    add_time,
    data_of,
    described,
    has_weights,
    network,
    set_threads,
    table,
    training_data,
)

TRAINS = True
RESUMES = '; the same command goes on where it was'
_OURS = {
    '--dataset', '--data-dir', '--save', '--output', '--experiment', '--resume', '--from-saved',
    '--from-saved-weights', '--kd-model-name', '--epochs', '--model', '--rewire',
}  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_network(parser)
    amount = parser.add_mutually_exclusive_group(required=True)
    for unit, what in (('time', 'time'), ('flops', 'multiply-adds'), ('parameters', 'parameters')):
        amount.add_argument(
            f'--{unit}', type=float, nargs='+', metavar='SHARE',
            help=f'budgets: {what} relative to the network, each in (0, 1)',
        )  # fmt: skip
    amount.add_argument(
        '--drop', type=float, metavar='POINTS',
        help='instead, the fastest whose top-1 on the calibration images falls by no more',
    )  # fmt: skip
    parser.add_argument('-o', '--output', type=Path, required=True, metavar='FOLDER')
    parser.add_argument(
        '--ranking', choices=sorted(RANKINGS), default='taylor',
        help='what a node is worth: a first-order Taylor term, the loss without it, the weights of '
        'its edges, chance (default: %(default)s)',
    )  # fmt: skip
    parser.add_argument('--search', choices=SEARCHES, default='greedy', help='default: %(default)s')
    parser.add_argument(
        '--images', type=positive, default=500, metavar='N',
        help='training images to calibrate on (default: %(default)s)',
    )  # fmt: skip
    parser.add_argument('--seed', type=int, default=0, help='of --ranking random')
    parser.add_argument(
        '--epochs', type=int, default=3, metavar='N',
        help='of training afterwards, learning from the network before too; 0: none '
        '(default: %(default)s)',
    )  # fmt: skip
    parser.add_argument(
        '--no-recalibrate', dest='recalibrate', action='store_false',
        help="leave the statistics of batch norm as they were (default: anew, on the calibration "
        'images)',
    )  # fmt: skip
    parser.add_argument(
        '--control', action='store_true', help='train the network before on too, as long'
    )
    add_time(parser, repeats=20)
    parser.set_defaults(batch_size=1)
    add_data(parser, required=True)


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Options that do not go together, and those of this command alone."""
    if args.epochs < 0:
        parser.error(f'--epochs is 0 or more, got {args.epochs}')
    if not args.epochs and (args.control or args.training):
        parser.error('--epochs 0 trains nothing: no --control, and nothing behind --')
    chosen = {option.partition('=')[0] for option in args.training or ()}
    if chosen := sorted(_OURS & chosen):
        parser.error(f'topo shrink chooses {", ".join(chosen)} itself')


def run(args: argparse.Namespace) -> dict:
    """Search, save, train on; rows per budget."""
    from ..experiments.shrink import Shrinking
    from ..report.shrink import shrink_report

    if not has_weights(args.network) and '@' not in args.network:
        raise ValueError(f'{args.network} names no weights: NAME@FILE, a saved network or a run')
    set_threads(args)
    model = network(args, graph=False)
    options = None
    if args.epochs:
        data = [
            '--dataset',
            args.dataset,
            *(['--data-dir', args.data_dir] if args.data_dir else []),
        ]
        splits = ['--train-split', args.train_split, '--val-split', args.val_split]
        rest = ['--lr', '0.01', *(args.training or ()), '--epochs', str(args.epochs)]
        options = parse_args([*data, *splits, '--device', args.device, *rest])
    budgets = {unit: getattr(args, unit) for unit in ('time', 'flops', 'parameters')}
    unit = next((unit for unit, given in budgets.items() if given), 'time')
    shrinking = Shrinking(
        model=model,
        output=args.output,
        trained=training_data(args, model),
        data=data_of(args, model),
        described=described(args),
        budgets=budgets[unit],
        drop=args.drop,
        unit=unit,
        images=args.images,
        batch_size=args.batch_size,
        repeats=args.repeats,
        ranking=args.ranking,
        search=args.search,
        seed=args.seed,
        options=options,
        recalibrate=args.recalibrate,
        control=args.control,
    )
    result = {'network': args.network, 'unit': unit, **shrinking.run()}
    page = shrink_report(result).write(args.output / 'report.html')
    return {**result, 'written': [args.output / 'shrink.csv', page]}


def text(result: dict) -> str:
    """A table of budgets, and the steps of the search."""
    rows = [result['before'], *result['rows']]
    names = ['network', 'asked', 'predicted', 'measured', 'nodes', 'parameters', 'multiply_adds']
    names += ['top1', 'top1_tuned', 'removed']
    columns = [name for name in names if any(row.get(name) not in (None, '') for row in rows)]
    steps = ', '.join(f'{row["measured"]:.3f}' for row in result['way'])
    return f'{table(rows, columns)}\n\n{result["unit"]} on the way: {steps}'
