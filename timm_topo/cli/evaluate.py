"""Loss and accuracy on a data set, with the preprocessing that the network was trained for.

A NETWORK may be a plain one of timm.

examples:
  topo evaluate output/RUN --dataset digits
  topo evaluate pruned --data-dir IMAGENET --batch-size 256 --device cuda
  topo evaluate resnet50@weights.safetensors --data-dir IMAGENET
"""

import argparse

from ..analysis.cost import count_parameters
from ..training.evaluate import eval_loader, evaluate
from ..training.options import positive
from .common import add_data, add_network, data_of, has_weights, network


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_network(parser)
    parser.add_argument('--batch-size', type=positive, default=128, help='default: %(default)s')
    add_data(parser, required=True)


def run(args: argparse.Namespace) -> dict:
    """Loss and accuracies."""
    if not has_weights(args.network):
        raise ValueError(f'{args.network} is a name without weights: give {args.network}@FILE')
    model = network(args, graph=False)
    data = data_of(args, model)
    result = evaluate(model, eval_loader(model, data, args.batch_size), args.device)
    return {
        'network': args.network,
        'images': len(data),
        'parameters': count_parameters(model),
        **result,
    }


def text(result: dict) -> str:
    """One line."""
    return (
        f'top-1 {result["top1"]:.2f}%, top-5 {result["top5"]:.2f}%, loss {result["loss"]:.4f} on '
        f'{result["images"]:,} images'
    )
