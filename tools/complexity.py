#!/usr/bin/env python
"""Parameters and multiply-adds of models: ``python tools/complexity.py 'toponet_*' resnet50``."""

import argparse
import sys

import timm

import timm_topo  # noqa: F401  registers the models
from timm_topo.analysis.cost import count_flops, count_parameters


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('models', nargs='+', metavar='NAME', help='timm names, wildcards allowed')
    names = [n for pattern in parser.parse_args().models for n in timm.list_models(pattern)]
    if not names:
        sys.exit('error: no registered model has such a name')
    print(f'{"model":28} {"input":>6} {"parameters":>11} {"conv MFLOPs":>12} {"total MFLOPs":>13}')
    for name in names:
        model = timm.create_model(name)
        flops = count_flops(model)
        size = model.pretrained_cfg['input_size'][-1]
        print(
            f'{name:28} {size:>6} {count_parameters(model):>11,} '
            f'{flops.conv / 1e6:>12.2f} {flops.total / 1e6:>13.2f}'
        )


if __name__ == '__main__':
    main()
