"""Options that commands share, and what they stand for."""

import argparse
import sys
from collections.abc import Sequence

import torch
from timm.utils import ParseKwargs
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..analysis.tables import text_table
from ..data import load_dataset, summary
from ..images import ImageFiles
from ..stages import graph_stages
from ..training.evaluate import image_batches, image_mode
from ..training.restore import restore

__all__ = [
    'add_data', 'add_network', 'data_of', 'described', 'images_of', 'network', 'routed', 'table',
    'training_data',
]  # fmt: skip


def add_network(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """The checkpoint, and what a file of bare weights does not tell."""
    if not several:
        parser.add_argument(
            'checkpoint', metavar='CHECKPOINT',
            help='saved network, folder of a run, or .pth.tar, .pth, .safetensors',
        )  # fmt: skip
    parser.add_argument(
        '--model', metavar='NAME', help='of the network, for files that do not tell'
    )
    parser.add_argument('--model-kwargs', nargs='*', default={}, action=ParseKwargs, metavar='K=V')
    parser.add_argument('--device', default='cpu')


def add_data(parser: argparse.ArgumentParser, required: bool = False) -> None:
    """Data sets, as for training."""
    group = parser.add_argument_group('data')
    group.add_argument(
        '--dataset', metavar='NAME', required=required,
        help="digits (built in), idx, strips, torch/..., hfds/..., wds/..., or '' for a folder of "
        'class folders',
    )  # fmt: skip
    group.add_argument('--data-dir', metavar='DIR')
    group.add_argument('--train-split', default='train', metavar='NAME')
    group.add_argument('--val-split', default='validation', metavar='NAME')


def network(args: argparse.Namespace, path: str | None = None) -> nn.Module:
    """The network of a checkpoint, in evaluation mode.

    Raises:
        ValueError: It has no graph stage; or as for
            :func:`timm_topo.training.restore.restore`.
    """
    path = args.checkpoint if path is None else path
    try:
        device = torch.device(args.device)
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f'--device {args.device}: {str(error).splitlines()[0]}') from None
    model = restore(path, args.model, args.model_kwargs)
    try:
        graph_stages(model)
    except ValueError as error:
        raise ValueError(f'{path}: {error}; timm_topo.rewire makes graphs of a network') from None
    return model.to(device)


def routed(model: nn.Module) -> bool:
    """Whether any edge weight depends on the image."""
    return any(stage.needs_context for stage in graph_stages(model).values())


def data_of(args: argparse.Namespace, model: nn.Module) -> Dataset | None:
    """What accuracy is measured on, if data are given."""
    if args.dataset is None:
        return None
    return _told(load_dataset(args.dataset, args.data_dir, args.val_split, image_mode(model)))


def training_data(args: argparse.Namespace, model: nn.Module) -> Dataset | None:
    """What a network is adapted to, if data are given."""
    if args.dataset is None:
        return None
    return _told(load_dataset(args.dataset, args.data_dir, args.train_split, image_mode(model)))


def _told(dataset: Dataset) -> Dataset:
    """A data set; of a folder, what it holds is said beside the output."""
    if isinstance(dataset, ImageFiles) and dataset.found:
        print(f'{dataset.reader.root}: {summary(dataset)}', file=sys.stderr)
    return dataset


def described(args: argparse.Namespace) -> str:
    """What the data are called."""
    return f'{args.dataset}@{args.data_dir or ""}:{args.val_split}'


def images_of(args: argparse.Namespace, model: nn.Module) -> Tensor | None:
    """128 training images over which weights that depend on the image are averaged.

    Raises:
        ValueError: Weights depend on the image and no data are given.
    """
    if not routed(model):
        return None
    if args.dataset is None:
        raise ValueError('edge weights of this network depend on the image: give --dataset')
    (images,) = image_batches(model, training_data(args, model), 1)
    return images


def table(rows: Sequence[dict], columns: Sequence[str]) -> str:
    """Rows as text, a number as short as it is."""

    def cell(value) -> str:
        if value is None:
            return '-'
        return f'{value:.4g}' if isinstance(value, float) else str(value)

    return text_table(columns, [[cell(row.get(name)) for name in columns] for row in rows])
