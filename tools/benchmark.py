#!/usr/bin/env python
"""Time of models beside each other: ``python tools/benchmark.py resnet50 dgnet_resnet50``.

Ratios are to the first model. All models run in turn, round by round, so that noise hits all alike;
a ratio is the median over the rounds, its range the middle half of them. Options of a model follow
its name: ``dgnet_resnet50:connectivity=alpha,num_classes=10``. A name with a slash in it is the
folder of a saved network. ``--suite`` runs what docs/performance.md shows (``make bench``).
"""

import argparse
import ast
import platform
import sys

import timm
import torch

import timm_topo
from timm_topo.analysis.benchmark import SUITES, markdown, suite, write_json
from timm_topo.analysis.cost import input_size_of, latency
from timm_topo.analysis.memory import keep_freed_memory
from timm_topo.files import write_text
from timm_topo.training.options import positive


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('models', nargs='*', metavar='NAME[:K=V,...]|FOLDER')
    parser.add_argument('--suite', nargs='+', choices=SUITES, help='instead of models')
    parser.add_argument('--json', metavar='FILE', help='of --suite')
    parser.add_argument('--markdown', metavar='FILE', help='of --suite')
    parser.add_argument('--train', action='store_true', help='forward and backward, in training')
    parser.add_argument('--deploy', action='store_true', help='the same, deployed, beside each')
    parser.add_argument('--batch-size', type=positive, nargs='+', default=[1, 8])
    parser.add_argument(
        '--img-size', type=positive, help="side in pixels (default: the first model's)"
    )
    parser.add_argument('--repeats', type=positive, default=20, help='rounds, after one to warm up')
    parser.add_argument('--threads', type=positive, help="default: PyTorch's")
    parser.add_argument(
        '--keep-memory', action='store_true', help='the C library keeps what is freed (glibc)'
    )
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--channels-last', action='store_true')
    args = parser.parse_args()
    if bool(args.models) == bool(args.suite):
        parser.error('give models, or --suite')
    if args.deploy and (args.train or args.suite):
        parser.error('--deploy is for the inference of models')
    return args


def make(spec: str, args: argparse.Namespace) -> torch.nn.Module:
    if '/' in spec:
        model = timm_topo.load(spec).eval().to(args.device)
        return model.to(memory_format=torch.channels_last) if args.channels_last else model
    name, _, options = spec.partition(':')
    if not timm.is_model(name):
        raise ValueError(f'unknown model {name!r}: see timm.list_models()')
    kwargs = {}
    for option in filter(None, options.split(',')):
        key, equals, value = option.partition('=')
        if not equals:
            raise ValueError(f'{spec!r}: options are K=V, got {option!r}')
        try:
            kwargs[key] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            kwargs[key] = value
    model = timm.create_model(name, **kwargs).eval().to(args.device)
    return model.to(memory_format=torch.channels_last) if args.channels_last else model


def run_suites(args: argparse.Namespace) -> None:
    """Tables on the console as they come, and all of them in the files."""
    rows = []
    about = dict(
        torch=torch.__version__, timm=timm.__version__, threads=torch.get_num_threads(),
        machine=platform.processor() or platform.machine(), device=args.device,
        cpu=torch.backends.cpu.get_cpu_capability(), rounds=args.repeats,
        keep_memory=args.keep_memory,
    )  # fmt: skip
    for name in args.suite:
        rows += suite(name, args.repeats, args.device)
        print(markdown([row for row in rows if row['suite'] == name]), flush=True)
        if args.json:
            write_json(rows, args.json, **about)
        if args.markdown:
            write_text(args.markdown, markdown(rows))


def main(args: argparse.Namespace) -> None:
    if args.keep_memory:
        keep_freed_memory()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.suite:
        run_suites(args)
        return
    models = {spec: make(spec, args) for spec in args.models}
    if args.deploy:
        models = {
            label: made
            for spec, model in models.items()
            for label, made in ((spec, model), (f'{spec}, deployed', timm_topo.deploy(model)))
        }
    channels, *size = input_size_of(next(iter(models.values())))
    if args.img_size:
        size = [args.img_size] * 2
    where = f'{torch.get_num_threads()} threads' if args.device == 'cpu' else args.device
    print(f'PyTorch {torch.__version__}, timm {timm.__version__}, {where}, {size[0]} px')
    width = max(map(len, models))
    for batch in args.batch_size:
        images = torch.randn(batch, channels, *size)
        if args.channels_last:
            images = images.to(memory_format=torch.channels_last)
        times = latency(models, (channels, *size), batch, args.repeats, images, args.train)
        for name, taken in times.items():
            print(
                f'batch {batch:3}  {name:{width}}  {taken.ratio:5.2f}  '
                f'({taken.ratios[0]:.2f} to {taken.ratios[1]:.2f})  {taken.median:9.1f} ms'
            )


if __name__ == '__main__':
    try:
        main(parse_args())
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        sys.exit(f'error: {error}')
