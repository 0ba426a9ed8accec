"""Accuracy, sparsity, nodes and parameters for thresholds on edge weights, without training.

Networks with the same label are one line of the figure. A threshold that leaves no path from input
to output is marked as such. Weights that depend on the image are averaged over training images.
Rows in the file of --csv that are of the same weights and data are taken over.

examples:
  topo sweep output/RUN --dataset digits --csv sweep.csv --figure sweep.svg
  topo sweep mnist=runs/0 mnist=runs/1 fashion=runs/2 --dataset idx --data-dir DATA --csv sweep.csv
"""

import argparse
from functools import partial

from ..analysis.compare import THRESHOLDS
from ..analysis.tables import group, mean_and_spread, text_table
from ..experiments.cache import digest
from ..experiments.sweep import sweep
from ..training.evaluate import accuracy
from .common import (
    add_data,
    add_networks,
    add_table,
    check_figure,
    data_of,
    described,
    images_of,
    network,
    write_table,
)

RESUMES = '; with --csv the same command goes on where it was'


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_networks(parser)
    parser.add_argument(
        '--thresholds', type=float, nargs='+', default=THRESHOLDS, metavar='TAU',
        help='default: %(default)s',
    )  # fmt: skip
    add_table(parser, 'a row per network and threshold')
    parser.add_argument('--figure', metavar='FILE', help='accuracy and edges left per threshold')
    add_data(parser, required=True)


def run(args: argparse.Namespace) -> dict:
    """Rows per threshold."""
    check_figure(args.figure)
    twice = {one for one in args.networks if args.networks.count(one) > 1}
    if twice:
        raise ValueError(f'{"=".join(min(twice))} is given twice')
    rows = []
    for label, path in args.networks:
        model = network(args, path)
        data, images = data_of(args, model), images_of(args, model)
        of = dict(
            label=label, network=path, weights=f'sha256-{digest(model)}', data=described(args)
        )
        score = partial(accuracy, dataset=data)
        rows += sweep(model, args.thresholds, score, args.csv, images, **of)
    written = write_table(args, rows)
    if args.figure:
        from .. import plot

        written.append(plot.save_figure(plot.threshold_curves(group(rows, 'label')), args.figure))
    return {'rows': rows, 'written': written}


def text(result: dict) -> str:
    """A table with a row per threshold."""
    lines, rows = [], result['rows']
    for label, of_label in group(rows, 'label').items():
        for threshold, at in group(of_label, 'threshold').items():
            whole = [row for row in at if row['connected']]
            cells = [f'{len(at) - len(whole)} of {len(at)} cut apart', '', '', '']
            if len(whole) == len(at):
                keys = (('top1', 2), ('sparsity', 3), ('nodes', 1), ('parameters', 0))
                cells = [mean_and_spread([r[key] for r in at], digits) for key, digits in keys]
            lines.append([label, f'{threshold:g}', *cells])
    head = ['network', 'threshold', 'top-1 (%)', 'sparsity', 'nodes', 'parameters']
    told = [text_table(head, lines)]
    moved = max((row['difference'] for row in rows if row.get('starved')), default=None)
    if moved is not None:
        told.append(f'nodes without input that were read changed outputs by at most {moved:.3g}')
    return '\n'.join(told)
