"""The networks of this package: parameters, multiply-adds and the figures of the papers.

Without names, counts are those that the tests hold; names, also of timm's networks and with
wildcards, are counted anew. Multiply-adds are those of convolutions.

examples:
  topo models
  topo models 'toponet_*' resnet50
  topo models resnet50 dgnet_resnet50 --input-size 3 800 1333
"""

import argparse
import json
from pathlib import Path

import timm
from tqdm import tqdm

from .. import models
from ..analysis.cost import count_flops, count_parameters, input_size_of
from ..analysis.tables import text_table
from ..training.options import positive

_COUNTS = Path(models.__path__[0]) / 'counts.json'


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument('models', nargs='*', metavar='NAME', help='timm names, wildcards allowed')
    parser.add_argument(
        '--input-size', nargs=3, type=positive, metavar=('C', 'H', 'W'),
        help="of the image; by default the network's own (in detection tables 3 800 1333)",
    )  # fmt: skip


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Options that do not go together."""
    if args.input_size and not args.models:
        parser.error('--input-size needs names')


def run(args: argparse.Namespace) -> dict:
    """Counts of the networks, known or counted anew."""
    known = json.loads(_COUNTS.read_text(encoding='utf-8'))
    if not args.models:
        listed = [name for name in timm.list_models(list(known)) if not name.startswith('test_')]
        return {'models': [_kept(name, known[name]) for name in listed]}
    names = [name for pattern in args.models for name in timm.list_models(pattern)]
    missing = [pattern for pattern in args.models if not timm.list_models(pattern)]
    if missing:
        raise ValueError(f'no registered model has such a name: {", ".join(missing)}')
    steps = tqdm(dict.fromkeys(names), leave=False, disable=None)
    return {
        'models': [_counted(name, args.input_size, known.get(name, {})) for name in steps],
    }


def _kept(name: str, counts: dict) -> dict:
    return {
        'name': name,
        'input_size': counts['input_size'],
        'parameters': counts['params'],
        'multiply_adds': {'conv': round(counts['conv_mflops'] * 1e6)},
        'paper': counts.get('printed', {}),
    }


def _counted(name: str, size: list[int] | None, counts: dict) -> dict:
    model = timm.create_model(name)
    size = size or input_size_of(model)
    flops = count_flops(model, size)
    return {
        'name': name,
        'input_size': list(size),
        'parameters': count_parameters(model),
        'multiply_adds': {'conv': flops.conv, 'total': flops.total},
        'paper': counts.get('printed', {}),
    }


def text(result: dict) -> str:
    """A table with a row per network."""
    head = ['model', 'input', 'parameters', 'conv M multiply-adds', 'total', 'paper: parameters']
    head += ['G multiply-adds', 'top-1 (%)', 'of']
    lines = []
    for row in result['models']:
        paper, adds = row['paper'], row['multiply_adds']
        lines.append(
            [
                row['name'],
                'x'.join(map(str, row['input_size'][1:])),
                f'{row["parameters"]:,}',
                f'{adds["conv"] / 1e6:.2f}',
                f'{adds["total"] / 1e6:.2f}' if 'total' in adds else '',
                f'{paper["params_m"]:g} M' if 'params_m' in paper else '',
                f'{paper["gflops"]:g}' if 'gflops' in paper else '',
                f'{paper["top1"]:.2f}' if 'top1' in paper else '',
                paper.get('data', ''),
            ]
        )
    shown = [i for i, _ in enumerate(head) if i == 0 or any(line[i] for line in lines)]
    return text_table([head[i] for i in shown], [[line[i] for i in shown] for line in lines])
