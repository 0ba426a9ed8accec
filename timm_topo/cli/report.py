"""One self-contained HTML page about a network: graphs, weights, degrees, costs.

With data also accuracy and, where weights depend on the image, how images differ; of the folder of
a run its training; with --damage, which is measured where it is not there yet, damage curves.

examples:
  topo report output/RUN -o report.html --dataset digits
  topo report pruned -o report.html --dataset digits --damage damage
"""

import argparse
import contextlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..analysis.cost import Latency, count_flops, input_size_of, latency
from ..analysis.history import read_edge_weights
from ..analysis.routing import routing
from ..analysis.tables import read_csv
from ..data import class_names
from ..stages import is_routed
from ..training.evaluate import accuracy, eval_loader, image_batches, sample
from .common import (
    add_data,
    add_network,
    add_time,
    data_of,
    described,
    folder_of,
    network,
    set_threads,
    training_data,
)

RESUMES = '; the same command goes on where damage was'
_ROUTED = 1024  # images whose ways are followed


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_network(parser)
    parser.add_argument('-o', '--output', type=Path, required=True, metavar='FILE')
    parser.add_argument('--title', help='default: name of the network')
    parser.add_argument(
        '--damage', type=Path, metavar='FOLDER', help='of topo damage; measured if it is not there'
    )
    add_time(parser, several=True)
    add_data(parser)


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Options that do not go together."""
    if args.output.suffix != '.html':
        parser.error(f'-o {args.output} is not .html')
    if args.damage and args.dataset is None:
        parser.error('--damage needs --dataset')


def run(args: argparse.Namespace) -> dict:
    """Write the page."""
    from ..report.network import Findings, network_page

    set_threads(args)
    model = network(args)
    threads = torch.get_num_threads()
    found = Findings(
        flops=count_flops(model),
        latency=_times(model, args),
        threads=f'{threads} CPU thread{"s" * (threads > 1)}'
        if args.device == 'cpu'
        else args.device,
    )
    if args.dataset is not None:
        _measure(found, model, args)
    folder = folder_of(args.network)
    if (folder / 'summary.csv').is_file():
        found.training = read_csv(folder / 'summary.csv')
        with contextlib.suppress(FileNotFoundError):  # deleted, or all weights by image
            found.snapshots = read_edge_weights(folder)
    title = args.title or Path(args.network).resolve().name
    page = network_page(model, title, found)
    return {'top1': found.top1, 'written': [page.write(args.output)]}


def _times(model: nn.Module, args: argparse.Namespace) -> dict[int, Latency]:
    return {
        batch: latency({'': model}, input_size_of(model), batch, args.repeats)['']
        for batch in args.batch_size
    }


def _measure(found, model: nn.Module, args: argparse.Namespace) -> None:
    """The findings that need data."""
    data = data_of(args, model)
    found.top1, found.data = accuracy(model, data), f'{args.dataset}, {args.val_split}'
    found.classes = class_names(data)
    if is_routed(model):
        (found.images,) = image_batches(model, data, 1)
        found.shown = _visible(model, found.images)
        loader = sample(eval_loader(model, data), _ROUTED)
        found.routes = routing(model, loader, _ROUTED)
    if args.damage:
        from ..experiments.damage import Damage

        damage = Damage(
            model=model,
            output=args.damage,
            data=data,
            trained=training_data(args, model),
            described=described(args),
        )
        damage.curves_there()
        found.damage = damage.run()


def _visible(model: nn.Module, images: Tensor) -> list[np.ndarray]:
    """Images as they were before normalisation."""
    cfg = model.pretrained_cfg
    mean, std = (torch.tensor(cfg[n]).view(-1, 1, 1) for n in ('mean', 'std'))
    shown = (images.cpu() * std + mean).clamp(0, 1).mul(255).byte()
    return list(shown.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy())


def text(result: dict) -> str:
    """Accuracy, if it was measured."""
    return '' if result['top1'] is None else f'top-1 {result["top1"]:.2f}%'
