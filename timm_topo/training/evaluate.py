"""Accuracy of a model over a loader."""

import copy
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from itertools import islice

import torch
from timm.data import create_loader, resolve_data_config
from timm.task import ClassificationEvaluator, evaluation_sample_limit
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset
from tqdm import tqdm

from .. import images as image_files
from ..analysis.cost import input_size_of
from ..data import class_names, unreadable
from ..images import UNREADABLE, ImageFiles

__all__ = [
    'accuracy',
    'check_classes',
    'eval_loader',
    'evaluate',
    'image_batches',
    'image_mode',
    'in_memory',
    'sample',
    'tell_unreadable',
]


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader,
    device: torch.device,
    autocast: Callable = nullcontext,
    channels_last: bool = False,
    distributed: bool = False,
) -> dict:
    """Cross-entropy, top-1 and top-5, exact over all processes, of the images that can be read.

    Args:
        model: Set to evaluation mode.
        loader: A timm loader of images ``(B, C, H, W)`` and labels ``(B,)``.
        device: Where the model is.
        autocast: Makes the context of the forward passes.
        channels_last: Whether to hand the images over in that layout.
        distributed: Whether to add up over processes.

    Returns:
        ``loss``, and ``top1`` and ``top5`` in percent.
    """
    model.eval()
    evaluator, left = ClassificationEvaluator(device), evaluation_sample_limit(loader)
    for images, target in tqdm(loader, 'evaluate', leave=False, disable=None):
        if channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with autocast():
            output = model(images)
        if left is not None:  # what follows is padding of a distributed sampler
            output, target = output[:left], target[:left]
            left -= len(target)
        readable = target != UNREADABLE
        evaluator.update(output[readable], target[readable])
    return dict(evaluator.compute(distributed=distributed))


def accuracy(model: nn.Module, dataset: Dataset, batch_size: int = 128) -> float:
    """Top-1 in percent over a whole data set, with the model's own preprocessing.

    Args:
        model: A timm model.
        dataset: As from :func:`timm_topo.data.load_dataset`; its transform is replaced.
        batch_size: Images per pass.

    Warns:
        UserWarning: Images cannot be read.

    Raises:
        ValueError: As for :func:`check_classes` and :func:`tell_unreadable`.
    """
    check_classes(model, dataset)
    device = next(model.parameters()).device
    top1 = evaluate(model, eval_loader(model, dataset, batch_size), device)['top1']
    tell_unreadable(dataset)
    return top1


def check_classes(model: nn.Module, dataset: Dataset) -> None:
    """Whether a folder has the classes of ``model``: its labels follow from what it holds.

    Raises:
        ValueError: It has others.
    """
    names, known = class_names(dataset), model.pretrained_cfg.get('label_names')
    if not isinstance(dataset, ImageFiles) or not names:
        return
    if len(names) != model.num_classes:
        raise ValueError(f'the data has {len(names)} classes, the network {model.num_classes}')
    if known and list(known) != names:
        odd = sorted(set(known) ^ set(names))[:5]
        raise ValueError(f'data and network have other classes: {", ".join(odd)}')


def tell_unreadable(dataset: Dataset) -> None:
    """Warn of images that could not be read in an evaluation.

    Raises:
        ValueError: No image of a class can be read.
    """
    if told := unreadable(dataset):
        warnings.warn(f'not scored: {told}', stacklevel=3)


def image_mode(model: nn.Module) -> str:
    """PIL mode of the images that ``model`` takes."""
    return image_files.image_mode(input_size_of(model)[0])


def image_batches(
    model: nn.Module, dataset: Dataset, count: int = 10, batch_size: int = 128
) -> list[Tensor]:
    """Images ``(B, C, H, W)`` as ``model`` evaluates them, drawn at random, always the same.

    Args:
        model: A timm model.
        dataset: As for :func:`accuracy`; sorted by class or not.
        count: Number of batches, if there are as many images.
        batch_size: Images per batch.
    """
    loader = sample(eval_loader(model, dataset, batch_size), count * batch_size)
    steps = tqdm(islice(loader, count), 'images', count, leave=False, disable=None)
    return [images for images, _ in steps if len(images)]


def sample(loader, count: int):
    """A loader of ``count`` random images of a timm loader, always the same; less those that cannot
    be read.

    Data sets that can only be read in order give the loader itself.
    """
    inner = loader.loader
    if isinstance(inner.dataset, IterableDataset):
        return loader
    order = torch.randperm(len(inner.dataset), generator=torch.Generator().manual_seed(0))
    chosen = copy.copy(loader)  # timm's prefetcher around it: device and normalisation
    chosen.loader = DataLoader(
        Subset(inner.dataset, order[:count].tolist()),
        batch_size=inner.batch_size,
        collate_fn=partial(_readable, inner.collate_fn),
    )
    return chosen


def _readable(collate: Callable, batch: list) -> tuple[Tensor, Tensor]:
    images, target = collate(batch)
    return images[target != UNREADABLE], target[target != UNREADABLE]


def in_memory(loader, limit: int | None = None):
    """A loader that gives the batches of a timm loader again and again, read once.

    Images are kept as bytes before normalisation: 150 kB each at 224 px.

    Args:
        loader: As from :func:`eval_loader`.
        limit: Take so many random images, always the same, instead of all.
    """
    if limit is not None:
        loader = sample(loader, limit)
    held = copy.copy(loader)  # timm's prefetcher around the batches: device and normalisation
    held.loader = list(tqdm(loader.loader, 'read images', leave=False, disable=None))
    return held


def eval_loader(model: nn.Module, dataset: Dataset, batch_size: int = 128):
    """timm's evaluation loader with the preprocessing that ``model`` was trained for."""
    config = resolve_data_config({}, model=model)
    return create_loader(
        dataset,
        input_size=config['input_size'],
        batch_size=batch_size,
        interpolation=config['interpolation'],
        mean=config['mean'],
        std=config['std'],
        crop_pct=config['crop_pct'],
        num_workers=0,
        device=next(model.parameters()).device,
        persistent_workers=False,
    )
