#!/usr/bin/env python
"""Prune a saved network: ``python tools/prune.py output/RUN/model --fraction 0.6 -o pruned``.

Prints what went and what it gained; with ``--dataset``, accuracy before and after too. The result
is a saved network again: train it with ``tools/train.py --from-saved pruned``, export it with
``tools/export.py pruned``, load it with ``timm_topo.load('pruned')``. Weights that depend on the
image (DG-Net) are averaged over 128 training images, so they need ``--dataset``.
"""

import argparse
import sys

import timm_topo
from timm_topo.analysis.cost import count_flops, count_parameters, input_size_of, latency
from timm_topo.analysis.prune import prune, recalibrate
from timm_topo.data import load_dataset
from timm_topo.stages import graph_stages
from timm_topo.training.evaluate import accuracy, image_batches, image_mode


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('model', metavar='FOLDER', help='saved network')
    amount = parser.add_mutually_exclusive_group(required=True)
    amount.add_argument('--threshold', type=float, help='remove edges with |weight| <= this')
    amount.add_argument('--fraction', type=float, help='remove this share of all edges')
    parser.add_argument(
        '--relative', action='store_true',
        help="judge an edge by its share of its node's strongest in-edge",
    )  # fmt: skip
    parser.add_argument('-o', '--output', required=True, metavar='FOLDER')
    parser.add_argument('--dataset', metavar='NAME', help='as for tools/train.py')
    parser.add_argument('--data-dir', metavar='DIR')
    parser.add_argument('--train-split', default='train')
    parser.add_argument('--val-split', default='validation')
    parser.add_argument(
        '--recalibrate', type=int, default=0, metavar='N',
        help='estimate batch-norm statistics anew on N batches of 128 training images',
    )  # fmt: skip
    parser.add_argument('--batch-size', type=int, default=8, help='of the latency measurement')
    args = parser.parse_args()
    if args.recalibrate and args.dataset is None:
        parser.error('--recalibrate needs --dataset')
    return args


def main(args: argparse.Namespace) -> None:
    model = timm_topo.load(args.model).eval()
    mode = image_mode(model)
    data = None
    if args.dataset is not None:
        data = load_dataset(args.dataset, args.data_dir, args.val_split, mode)
    routed = any(stage.needs_context for stage in graph_stages(model).values())
    if routed and data is None:
        raise ValueError('edge weights of this network depend on the image: give --dataset')
    train = images = None
    if routed or args.recalibrate:
        train = load_dataset(args.dataset, args.data_dir, args.train_split, mode)
    if routed:
        (images,) = image_batches(model, train, 1)
    pruned, report = prune(
        model, args.threshold, args.fraction, relative=args.relative, images=images
    )
    print(report)
    if args.recalibrate:
        recalibrate(pruned, image_batches(pruned, train, args.recalibrate))
    both = {'before': model, 'after': pruned}
    times = latency(both, input_size_of(model), args.batch_size)
    for label, network in both.items():
        edges = sum(stage.wiring.num_edges for stage in graph_stages(network).values())
        line = (
            f'{label:6}  {edges} edges  {count_parameters(network):,} parameters  '
            f'{count_flops(network).total / 1e6:.2f} M multiply-adds  '
            f'{times[label].median:.2f} ms for {args.batch_size} images (x{times[label].ratio:.2f})'
        )
        print(line + (f'  top-1 {accuracy(network, data):.2f}%' if data is not None else ''))
    timm_topo.save(pruned, args.output)
    print(f'saved: {args.output}')


if __name__ == '__main__':
    try:
        main(parse_args())
    except (ImportError, OSError, TypeError, ValueError) as error:
        sys.exit(f'error: {error}')
