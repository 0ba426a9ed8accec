"""Remove weak edges, and the nodes that die with them; the result is a saved network again.

The smaller network computes the same as the larger one with these edges at zero. Train it with
``topo retrain pruned``, export it with ``topo export pruned -o pruned.onnx``, load it with
``timm_topo.load('pruned')``.

examples:
  topo prune output/RUN --fraction 0.5 -o pruned --dataset digits --recalibrate 10
  topo prune output/RUN --threshold 0.006 -o pruned
  topo prune output/RUN --fraction 0.3 --order random --seed 1 -o control
"""

import argparse
import dataclasses

import timm_topo

from ..analysis.cost import count_flops, count_parameters, input_size_of, latency
from ..analysis.prune import ORDERS, edge_mask, prune, recalibrate
from ..stages import graph_stages
from ..training.evaluate import accuracy, image_batches
from ..training.options import positive
from .common import (
    add_data,
    add_network,
    add_time,
    data_of,
    images_of,
    network,
    set_threads,
    training_data,
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_network(parser)
    amount = parser.add_mutually_exclusive_group(required=True)
    amount.add_argument('--threshold', type=float, help='remove edges with |weight| <= this')
    amount.add_argument('--fraction', type=float, help='remove this share of all edges')
    parser.add_argument(
        '--relative', action='store_true',
        help="judge an edge by its share of its node's strongest in-edge",
    )  # fmt: skip
    parser.add_argument(
        '--order', choices=ORDERS, default='weakest', help='of --fraction (default: %(default)s)'
    )
    parser.add_argument('--seed', type=int, default=0, help='of --order random')
    parser.add_argument(
        '--no-fold', action='store_true',
        help='let nodes that nobody feeds just go, as in the papers, instead of keeping the '
        'constants that they emit',
    )  # fmt: skip
    parser.add_argument('-o', '--output', required=True, metavar='FOLDER')
    parser.add_argument(
        '--recalibrate', type=positive, metavar='N',
        help='estimate batch-norm statistics anew on N batches of 128 training images',
    )  # fmt: skip
    add_time(parser, repeats=40)
    add_data(parser)


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Options that do not go together."""
    if args.recalibrate and args.dataset is None:
        parser.error('--recalibrate needs --dataset')
    if args.threshold is not None and args.order != 'weakest':
        parser.error(f'--threshold takes the weakest edges, not --order {args.order}')


def run(args: argparse.Namespace) -> dict:
    """Prune, save, measure; numbers before and after."""
    set_threads(args)
    model = network(args)
    data = data_of(args, model)
    images = images_of(args, model)
    keep = edge_mask(
        model, args.threshold, args.fraction, args.relative, images, args.order, args.seed
    )
    pruned, report = prune(model, keep=keep, images=images, fold=not args.no_fold)
    if args.recalibrate:
        batches = image_batches(pruned, training_data(args, pruned), args.recalibrate)
        recalibrate(pruned, batches)
    both = {'before': model, 'after': pruned}
    times = latency(both, input_size_of(model), args.batch_size, args.repeats)
    rows = {}
    for label, one in both.items():
        rows[label] = {
            'edges': sum(stage.wiring.num_edges for stage in graph_stages(one).values()),
            'nodes': sum(stage.wiring.num_nodes for stage in graph_stages(one).values()),
            'parameters': count_parameters(one),
            'multiply_adds': count_flops(one).total,
            'ms': times[label].median,
            'ratio': times[label].ratio,
            'top1': None if data is None else accuracy(one, data),
        }
    timm_topo.save(pruned, args.output)
    return {
        **rows,
        'batch_size': args.batch_size,
        'exact': report.exact,
        'difference': report.difference,
        'cutoff': report.cutoff,
        'stages': [dataclasses.asdict(cut) for cut in report.stages],
        'report': str(report),
        'output': args.output,
    }


def text(result: dict) -> str:
    """The cut, and a line before and after."""
    lines = [result['report']]
    for label in ('before', 'after'):
        row = result[label]
        line = (
            f'{label:6}  {row["edges"]} edges  {row["parameters"]:,} parameters  '
            f'{row["multiply_adds"] / 1e6:.2f} M multiply-adds  {row["ms"]:.2f} ms for '
            f'{result["batch_size"]} images (x{row["ratio"]:.2f})'
        )
        lines.append(line + ('' if row['top1'] is None else f'  top-1 {row["top1"]:.2f}%'))
    return '\n'.join([*lines, f'saved: {result["output"]}'])
