"""Write a network as ONNX, checked in onnxruntime, or its graph as GraphML with edge weights.

ONNX is of the deployed network (timm_topo.deploy): static edge weights are numbers, batch norm is
in the convolutions before it.

With --int8, convolutions and linear layers take eight bits: onnxruntime's static quantization,
calibrated on training images. Accuracy before and after is measured on the validation split.

examples:
  topo export pruned -o pruned.onnx
  topo export pruned -o int8.onnx --int8 --dataset digits
  topo export pruned -o pruned.graphml
"""

import argparse
from pathlib import Path

import torch
from torch import nn

from ..analysis.cost import input_size_of
from ..analysis.export import export_graphml, export_onnx
from ..analysis.int8 import OnnxNetwork, export_int8
from ..deploy import deploy
from ..training.evaluate import accuracy, eval_loader, evaluate, image_batches
from ..training.options import positive
from .common import add_data, add_network, data_of, images_of, network, training_data


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_network(parser)
    parser.add_argument('-o', '--output', required=True, metavar='FILE', help='.onnx or .graphml')
    parser.add_argument('--input-size', type=positive, nargs=3, metavar='N', help='C H W, of ONNX')
    parser.add_argument('--int8', action='store_true', help='quantize; needs --dataset')
    parser.add_argument(
        '--calibration-images', type=positive, default=128, metavar='N',
        help='of --int8, random training images (default: %(default)s)',
    )  # fmt: skip
    add_data(parser)


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Options that do not go together."""
    if args.int8 and args.dataset is None:
        parser.error('--int8 needs --dataset')
    if args.int8 and Path(args.output).suffix == '.graphml':
        parser.error(f'--int8 is of .onnx, not of {args.output}')


def run(args: argparse.Namespace) -> dict:
    """Write the file; how far it is from PyTorch."""
    kind = Path(args.output).suffix
    if kind not in ('.onnx', '.graphml'):
        raise ValueError(f'{args.output} is neither .onnx nor .graphml')
    model = network(args)
    if kind == '.graphml':
        graph = export_graphml(model, args.output, images_of(args, model))
        return {'written': [args.output], 'nodes': len(graph), 'edges': graph.number_of_edges()}
    if args.int8:
        return _int8(args, model)
    size = args.input_size or input_size_of(model)
    probe = torch.randn(2, *size, generator=torch.Generator().manual_seed(0))
    return {
        'written': [args.output],
        'difference': export_onnx(deploy(model, probe), args.output, args.input_size),
    }


def _int8(args: argparse.Namespace, model: nn.Module) -> dict:
    if args.input_size:  # of what the data are made
        model.pretrained_cfg = {**model.pretrained_cfg, 'input_size': tuple(args.input_size)}
    data = data_of(args, model)
    batches = image_batches(model, training_data(args, model), args.calibration_images, 1)
    difference = export_int8(deploy(model), args.output, batches)
    top1 = None
    if model.num_classes:
        images = eval_loader(model, data)
        after = evaluate(OnnxNetwork(args.output), images, images.device)['top1']
        top1 = {'before': accuracy(model, data), 'after': after}
    return {
        'written': [args.output],
        'difference': difference,
        'calibration_images': len(batches),
        'top1': top1,
    }


def text(result: dict) -> str:
    """Size of a graph, or differences and accuracies."""
    if 'difference' not in result:
        return f'{result["nodes"]} nodes, {result["edges"]} edges'
    lines = [f'onnxruntime agrees with PyTorch to {result["difference"]:.2g}']
    if 'calibration_images' in result:
        lines[0] += ' before quantization'
        lines.append(f'int8, calibrated on {result["calibration_images"]} images')
        if result['top1'] is not None:
            top1 = result['top1']
            lines[1] += f': top-1 {top1["before"]:.2f}% before, {top1["after"]:.2f}% after'
    return '\n'.join(lines)
