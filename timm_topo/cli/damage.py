"""Accuracy over removed nodes and edges (TopoNet, section 4.4): CSV files and figures.

Removed at once, without training; with --recalibrate with new batch-norm statistics too; with
--retrain, options of tools/train.py behind --, also after training with the edge weights that are
left frozen. Finished work is kept: the same command goes on where it was.

examples:
  topo damage output/RUN -o damage --dataset digits --order weakest strongest random --seeds 0 1 2
  topo damage output/RUN -o damage --dataset digits --recalibrate
  topo damage output/RUN -o damage --dataset digits --retrain scratch -- --epochs 20 --lr 0.1
"""

import argparse
from pathlib import Path

from ..analysis.damage import FRACTIONS
from ..analysis.prune import ORDERS
from ..stages import is_routed
from ..training.options import parse_args, positive
from .common import add_data, add_network, data_of, described, network, table, training_data

TRAINS = True
RESUMES = '; the same command goes on where it was'


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_network(parser)
    parser.add_argument('-o', '--output', type=Path, required=True, metavar='FOLDER')
    parser.add_argument(
        '--fractions', type=float, nargs='+', default=FRACTIONS, metavar='SHARE',
        help='of the edges, to remove (default: 0.1 to 0.9)',
    )  # fmt: skip
    parser.add_argument('--order', nargs='+', choices=ORDERS, default=['weakest'])
    parser.add_argument('--seeds', type=int, nargs='+', default=[0], help='of --order random')
    parser.add_argument('--no-nodes', action='store_true', help='remove edges only')
    parser.add_argument(
        '--images', type=positive, metavar='N', help='evaluate on N random images (default: all)'
    )
    parser.add_argument(
        '--recalibrate', action='store_true',
        help='evaluate with new batch-norm statistics too, from training images',
    )  # fmt: skip
    parser.add_argument(
        '--retrain', choices=('scratch', 'finetune'),
        help='train what is left, edge weights frozen; options behind --',
    )  # fmt: skip
    parser.add_argument('--batch-size', type=positive, default=128, help='default: %(default)s')
    add_data(parser, required=True)


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Options that do not go together."""
    if args.training is not None and args.retrain is None:
        parser.error('options behind -- are for --retrain')


def run(args: argparse.Namespace) -> dict:
    """Remove, measure, draw; the rows of nodes and edges."""
    from ..experiments.damage import Damage

    model = network(args)
    options = None
    if args.retrain:
        options = parse_args(
            [
                *('--dataset', args.dataset),
                *(('--data-dir', args.data_dir) if args.data_dir else ()),
                *('--train-split', args.train_split, '--val-split', args.val_split),
                *(args.training or ()),
            ]
        )
        options.from_saved_weights = 'finetune-frozen' if args.retrain == 'finetune' else 'frozen'
    adapts = args.recalibrate or is_routed(model)
    damage = Damage(
        model=model,
        output=args.output,
        data=data_of(args, model),
        trained=training_data(args, model) if adapts else None,
        described=described(args),
        images=args.images,
        fractions=args.fractions,
        orders=args.order,
        seeds=args.seeds,
        nodes=not args.no_nodes,
        retrain=options,
        batch_size=args.batch_size,
    )
    return {'network': args.network, 'output': args.output, **damage.run()}


def text(result: dict) -> str:
    """Accuracy, and a table over removed edges."""
    names = ['order', 'seed', 'removed', 'edges', 'connected']
    names += ['top1', 'top1_recalibrated', 'top1_retrained']
    columns = [name for name in names if any(name in row for row in result['edges'])]
    lines = [f'top-1 {result["top1"]:.2f}%', '', table(result['edges'], columns)]
    if result['nodes']:
        columns = ['stage', 'node', 'in_degree', 'out_degree', 'connected', 'top1']
        lines += ['', table(result['nodes'], columns)]
    return '\n'.join([*lines, '', f'written: {result["output"]}'])
