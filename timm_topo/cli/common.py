"""Options that commands share, and their meaning."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import timm
import torch
from timm.utils import ParseKwargs
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..analysis.tables import text_table, write_csv
from ..data import load_dataset, summary
from ..images import ImageFiles
from ..stages import graph_stages, is_routed
from ..training.evaluate import image_batches, image_mode
from ..training.options import labelled, positive
from ..training.restore import restore

__all__ = [
    'add_data', 'add_network', 'add_networks', 'add_table', 'add_time', 'check_figure', 'data_of',
    'described', 'folder_of', 'has_weights', 'images_of', 'network', 'set_threads', 'table',
    'training_data', 'write_table',
]  # fmt: skip

_FIGURES = ('.svg', '.png', '.pdf')


def add_network(parser: argparse.ArgumentParser) -> None:
    """One network, and what a file of bare weights does not tell."""
    parser.add_argument(
        'network', metavar='NETWORK',
        help='saved network, folder of a run, .pth.tar, .pth or .safetensors; or a timm name, '
        'NAME@FILE with weights',
    )  # fmt: skip
    _add_weights(parser)


def add_networks(parser: argparse.ArgumentParser) -> None:
    """One network or several, with labels."""
    parser.add_argument(
        'networks', nargs='+', type=labelled, metavar='[LABEL=]NETWORK',
        help='saved networks, folders of runs, files of weights or timm names (NAME@FILE)',
    )  # fmt: skip
    _add_weights(parser)


def _add_weights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--model', metavar='NAME', help='of the network, for files that do not tell'
    )
    parser.add_argument('--model-kwargs', nargs='*', default={}, action=ParseKwargs, metavar='K=V')
    parser.add_argument('--device', default='cpu')


def add_data(parser: argparse.ArgumentParser, required: bool = False) -> None:
    """Data sets, as for training."""
    group = parser.add_argument_group('data')
    group.add_argument(
        '--dataset', metavar='NAME',
        help="digits (built in), idx, strips, torch/..., hfds/..., wds/..., or '' for a folder of "
        "class folders (default: '' with --data-dir)",
    )  # fmt: skip
    group.add_argument('--data-dir', metavar='DIR')
    group.add_argument('--train-split', default='train', metavar='NAME')
    group.add_argument('--val-split', default='validation', metavar='NAME')
    parser.set_defaults(needs_data=required)


def add_time(parser: argparse.ArgumentParser, several: bool = False, repeats: int = 20) -> None:
    """How time is measured: images per pass, rounds, threads."""
    group = parser.add_argument_group('measured time')
    group.add_argument(
        '--batch-size', type=positive, nargs='+' if several else None,
        default=[1, 8] if several else 8, help='images per pass (default: %(default)s)',
    )  # fmt: skip
    group.add_argument(
        '--repeats', type=positive, default=repeats, help='rounds (default: %(default)s)'
    )
    group.add_argument('--threads', type=positive, help="default: PyTorch's")


def set_threads(args: argparse.Namespace) -> None:
    """Use as many threads as ``--threads`` says."""
    if args.threads:
        torch.set_num_threads(args.threads)


def add_table(parser: argparse.ArgumentParser, rows: str) -> None:
    """``--csv``."""
    parser.add_argument('--csv', type=Path, metavar='FILE', help=rows)


def write_table(args: argparse.Namespace, rows: Sequence[dict]) -> list[Path]:
    """What ``--csv`` asks for; the files that were written."""
    return [write_csv(args.csv, rows)] if args.csv else []


def check_figure(path: str | Path | None, kinds: Sequence[str] = _FIGURES) -> None:
    """Refuse a figure that could not be drawn, before anything is measured.

    Raises:
        ImportError: Figures take an extra that is not installed.
        ValueError: It is of another kind.
    """
    if path is None:
        return
    from .. import plot  # noqa: F401

    if Path(path).suffix not in kinds:
        raise ValueError(f'{path} is not one of {", ".join(kinds)}')


def network(args: argparse.Namespace, path: str | None = None, graph: bool = True) -> nn.Module:
    """The network that is meant, in evaluation mode.

    Args:
        args: Of the command.
        path: What names it; by default what ``args`` does.
        graph: Whether it must have graph stages.

    Raises:
        ValueError: It has no graph stage; or as for
            :func:`timm_topo.training.restore.restore`.
    """
    path = str(args.network if path is None else path)
    try:
        device = torch.device(args.device)
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f'--device {args.device}: {str(error).splitlines()[0]}') from None
    model = _restored(path, args)
    if graph:
        try:
            graph_stages(model)
        except ValueError as error:
            raise ValueError(
                f'{path}: {error}; timm_topo.rewire makes graphs of a network'
            ) from None
    return model.to(device)


def _restored(path: str, args: argparse.Namespace) -> nn.Module:
    name, _, file = path.partition('@')
    if Path(path).exists() or not timm.is_model(name):
        return restore(path, args.model, args.model_kwargs)
    if file:
        return restore(file, name, args.model_kwargs)
    return timm.create_model(name, **args.model_kwargs).eval()


def has_weights(path: str) -> bool:
    """Whether what names a network names weights too; a name that timm knows does not."""
    return Path(path).exists() or not timm.is_model(path)


def folder_of(path: str) -> Path:
    """Of the run that a checkpoint or a saved network is in, if it is in one."""
    folder = Path(path)
    return folder.parent if folder.name == 'model' or folder.is_file() else folder


def data_of(args: argparse.Namespace, model: nn.Module) -> Dataset | None:
    """What accuracy is measured on, if data are given."""
    if args.dataset is None:
        return None
    return _told(load_dataset(args.dataset, args.data_dir, args.val_split, image_mode(model)))


def training_data(args: argparse.Namespace, model: nn.Module) -> Dataset | None:
    """The training images, if data are given."""
    if args.dataset is None:
        return None
    return _told(load_dataset(args.dataset, args.data_dir, args.train_split, image_mode(model)))


def _told(dataset: Dataset) -> Dataset:
    """A data set; of a folder, what it holds is said beside the output."""
    if isinstance(dataset, ImageFiles) and dataset.found:
        print(f'{dataset.reader.root}: {summary(dataset)}', file=sys.stderr)
    return dataset


def described(args: argparse.Namespace) -> str:
    """Name of the data."""
    return f'{args.dataset}@{args.data_dir or ""}:{args.val_split}'


def images_of(args: argparse.Namespace, model: nn.Module) -> Tensor | None:
    """128 training images over which weights that depend on the image are averaged.

    Raises:
        ValueError: Weights depend on the image and no data are given.
    """
    if not is_routed(model):
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
