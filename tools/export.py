#!/usr/bin/env python
"""Export a saved network to ONNX: ``python tools/export.py output/RUN/model model.onnx``."""

import argparse
import sys

import timm_topo
from timm_topo.analysis.export import export_onnx


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('model', metavar='FOLDER', help='saved network')
    parser.add_argument('onnx', metavar='FILE', help='ONNX file to write')
    parser.add_argument('--input-size', type=int, nargs=3, metavar='N', help='C H W')
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    difference = export_onnx(timm_topo.load(args.model), args.onnx, args.input_size)
    print(f'{args.onnx}: onnxruntime agrees with PyTorch to {difference:.2g}')


if __name__ == '__main__':
    try:
        main(parse_args())
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        sys.exit(f'error: {error}')
