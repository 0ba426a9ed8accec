#!/usr/bin/env python
"""What thresholds leave: ``python tools/sweep.py output/RUN/model --dataset digits -o sweep.csv``.

Accuracy, sparsity, nodes and parameters for each threshold on the edge weights of one or several
trained networks, without training. Name networks LABEL=FOLDER to have those with the same label as
one line of the figure: ``mnist=runs/0/model mnist=runs/1/model fashion=runs/2/model``. A threshold
that leaves no path from input to output is marked as such.
"""

import argparse
import sys

from tqdm import tqdm

import timm_topo
from timm_topo.analysis.compare import THRESHOLDS, threshold_sweep
from timm_topo.analysis.tables import group, mean_and_spread, text_table, write_csv
from timm_topo.data import load_dataset
from timm_topo.stages import graph_stages
from timm_topo.training.evaluate import accuracy, image_batches, image_mode
from timm_topo.training.options import labelled


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('models', nargs='+', type=labelled, metavar='[LABEL=]FOLDER')
    parser.add_argument(
        '--thresholds',
        type=float,
        nargs='+',
        default=THRESHOLDS,
        metavar='TAU',
        help='default: %(default)s',
    )
    parser.add_argument('--dataset', required=True, metavar='NAME', help='as for tools/train.py')
    parser.add_argument('--data-dir', metavar='DIR')
    parser.add_argument('--val-split', default='validation')
    parser.add_argument('--train-split', default='train', help='for weights per image only')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('-o', '--output', required=True, metavar='CSV')
    parser.add_argument('--figure', metavar='SVG', help='accuracy and edges left per threshold')
    return parser.parse_args()


def sweep(folder: str, args: argparse.Namespace) -> list[dict]:
    """Rows of one network."""
    model = timm_topo.load(folder).to(args.device).eval()
    mode = image_mode(model)
    data = load_dataset(args.dataset, args.data_dir, args.val_split, mode)
    images = None
    if any(stage.needs_context for stage in graph_stages(model).values()):
        train = load_dataset(args.dataset, args.data_dir, args.train_split, mode)
        (images,) = image_batches(model, train, 1)
    thresholds = list(dict.fromkeys(args.thresholds))
    steps = threshold_sweep(model, thresholds, lambda m: accuracy(m, data), images)
    return list(tqdm(steps, folder, len(thresholds), leave=False, disable=None))


def main(args: argparse.Namespace) -> None:
    if args.figure:
        from timm_topo.plot import save_figure, threshold_curves
    rows = [
        {'label': label, 'network': folder, **row}
        for label, folder in args.models
        for row in sweep(folder, args)
    ]
    write_csv(args.output, rows)
    head = ['network', 'threshold', 'top-1 (%)', 'sparsity', 'nodes', 'parameters']
    lines = []
    for label, of_label in group(rows, 'label').items():
        for threshold, at in group(of_label, 'threshold').items():
            whole = [row for row in at if row['connected']]
            cells = [f'{len(at) - len(whole)} of {len(at)} cut apart', '', '', '']
            if len(whole) == len(at):
                keys = (('top1', 2), ('sparsity', 3), ('nodes', 1), ('parameters', 0))
                cells = [mean_and_spread([r[key] for r in at], digits) for key, digits in keys]
            lines.append([label, f'{threshold:g}', *cells])
    print(text_table(head, lines))
    moved = max((row['difference'] for row in rows if row.get('starved')), default=None)
    if moved is not None:
        print(f'nodes without input that were read changed outputs by at most {moved:.3g}')
    if args.figure:
        save_figure(threshold_curves(group(rows, 'label')), args.figure)
    print(f'written: {args.output}' + (f', {args.figure}' if args.figure else ''))


if __name__ == '__main__':
    try:
        main(parse_args())
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        sys.exit(f'error: {error}')
