"""Write a network as ONNX, checked in onnxruntime, or its graph as GraphML with edge weights.

examples:
  topo export pruned pruned.onnx
  topo export pruned pruned.graphml
"""

import argparse
from pathlib import Path

from ..analysis.export import export_graphml, export_onnx
from ..training.options import positive
from .common import add_data, add_network, images_of, network


def add_options(parser: argparse.ArgumentParser) -> None:
    add_network(parser)
    parser.add_argument('file', metavar='FILE', help='.onnx or .graphml')
    parser.add_argument('--input-size', type=positive, nargs=3, metavar='N', help='C H W, of ONNX')
    add_data(parser)


def run(args: argparse.Namespace) -> dict:
    kind = Path(args.file).suffix
    if kind not in ('.onnx', '.graphml'):
        raise ValueError(f'{args.file} is neither .onnx nor .graphml')
    model = network(args)
    if kind == '.graphml':
        graph = export_graphml(model, args.file, images_of(args, model))
        return {'file': args.file, 'nodes': len(graph), 'edges': graph.number_of_edges()}
    return {'file': args.file, 'difference': export_onnx(model, args.file, args.input_size)}


def text(result: dict) -> str:
    if 'difference' in result:
        return f'{result["file"]}: onnxruntime agrees with PyTorch to {result["difference"]:.2g}'
    return f'{result["file"]}: {result["nodes"]} nodes, {result["edges"]} edges'
