#!/usr/bin/env python
"""Parameters and multiply-adds of models: ``python tools/complexity.py 'toponet_*' resnet50``."""

import argparse
import sys

import timm

import timm_topo  # noqa: F401  registers the models
from timm_topo.analysis.cost import count_flops, count_parameters, input_size_of
from timm_topo.training.options import positive


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('models', nargs='+', metavar='NAME', help='timm names, wildcards allowed')
    parser.add_argument(
        '--input-size', nargs=3, type=positive, metavar=('C', 'H', 'W'),
        help="of the image; by default the model's own (in detection tables 3 800 1333)",
    )  # fmt: skip
    options = parser.parse_args()
    names = [n for pattern in options.models for n in timm.list_models(pattern)]
    if not names:
        sys.exit('error: no registered model has such a name')
    print(f'{"model":28} {"input":>9} {"parameters":>11} {"conv MFLOPs":>12} {"total MFLOPs":>13}')
    for name in names:
        model = timm.create_model(name)
        size = options.input_size or input_size_of(model)
        flops = count_flops(model, size)
        height_width = f'{size[1]}x{size[2]}'
        print(
            f'{name:28} {height_width:>9} {count_parameters(model):>11,} '
            f'{flops.conv / 1e6:>12.2f} {flops.total / 1e6:>13.2f}'
        )


if __name__ == '__main__':
    try:
        main()
    except (ImportError, RuntimeError, ValueError) as error:
        sys.exit(f'error: {error}')
