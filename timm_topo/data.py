"""Data sets by name, with the checks that keep a wrong path from training on the wrong images.

``digits`` is built in (scikit-learn's 1,797 scans, no download); ``idx`` reads the files of the
MNIST family; ``strips`` reads images packed as lossless WebP strips; everything else is timm's.
``colour/`` and ``tiles/`` before a name make an easier or a harder set of it.
"""

import gzip
import io
import json
import os
import zipfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image
from timm.data import ImageDataset, create_dataset, get_img_extensions, set_img_extensions
from torch.utils.data import Dataset, IterableDataset

from .extras import needs
from .images import SUFFIXES, ImageFiles, contents, hidden
from .variants import VARIANTS, Converted, Variant, make_variant

__all__ = [
    'ALIASES', 'ArrayDataset', 'Portion', 'class_names', 'examples', 'image_files', 'load_dataset',
    'summary', 'unreadable',
]  # fmt: skip

#: The data sets of Janik & Nowak, section 4, by torchvision's files.
ALIASES = {
    'cmnist': 'colour/torch/mnist',
    'ckmnist': 'colour/torch/kmnist',
    'cfashionmnist': 'colour/torch/fashion_mnist',
    'cifar10': 'torch/cifar10',
    'cifar10_t8': 'tiles:size=8/torch/cifar10',
}

_TRAIN = ('train', 'training')
_EVAL = ('validation', 'valid', 'val', 'eval', 'evaluation')
_TIMM_PREFIXES = ('torch', 'hfds', 'hfids', 'tfds', 'wds')


class ArrayDataset(Dataset):
    """Images in memory; ``transform`` is set by timm's loader.

    Args:
        images: uint8 ``(N, H, W)`` or ``(N, H, W, 3)``.
        labels: Class indices ``(N,)``.
        classes: Names of the classes.
        mode: PIL mode to convert to, ``'RGB'`` or ``'L'``.

    Raises:
        ValueError: No images, numbers that disagree, or a label without a class.
    """

    def __init__(
        self, images: np.ndarray, labels: np.ndarray, classes: Sequence[str], mode: str = 'RGB'
    ):
        if not len(images) or len(images) != len(labels):
            raise ValueError(f'{len(images)} images and {len(labels)} labels make no data set')
        if labels.min() < 0 or labels.max() >= len(classes):
            raise ValueError(
                f'labels {labels.min()} to {labels.max()} do not fit {len(classes)} classes'
            )
        self.images = images
        self.labels = labels.astype(np.int64)
        self.classes = list(classes)
        self.mode = mode
        self.transform = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int):
        image = Image.fromarray(self.images[index]).convert(self.mode)
        if self.transform is not None:
            image = self.transform(image)
        return image, int(self.labels[index])


class Portion(Dataset):
    """Some images of a data set, drawn at random, always the same ones.

    Args:
        dataset: Whose images can be read by number.
        count: How many.

    Raises:
        ValueError: It can only be read in order, or has fewer images.
    """

    def __init__(self, dataset: Dataset, count: int):
        if isinstance(dataset, IterableDataset):
            raise ValueError(f'{type(dataset).__name__} can only be read in order: take all of it')
        if count > len(dataset):
            raise ValueError(f'{count} images asked for, the data set has {len(dataset)}')
        self.dataset = dataset
        self.chosen = np.random.default_rng(0).permutation(len(dataset))[:count].tolist()

    @property
    def transform(self):
        """That of the data set; timm's loader sets it."""
        return self.dataset.transform

    @transform.setter
    def transform(self, transform) -> None:
        self.dataset.transform = transform

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int):
        return self.dataset[self.chosen[index]]


def load_dataset(
    name: str,
    root: str | Path | None = None,
    split: str = 'train',
    mode: str = 'RGB',
    is_training: bool = False,
    **timm_options,
) -> Dataset:
    """A data set for ``timm.data.create_loader``.

    Args:
        name: ``'digits'``; ``'idx'`` or ``'strips'`` (files in ``root``); a timm name such as
            ``'torch/cifar100'`` or ``'hfds/...'``; or ``''`` for a folder of class folders. Any of
            them behind ``'colour/'`` or ``'tiles/'``, see :mod:`timm_topo.variants`; or a key of
            :data:`ALIASES`.
        root: Folder with the data.
        split: ``'train'`` or ``'validation'``, or what timm's data set calls its splits.
        mode: PIL mode, as of :data:`timm_topo.images.MODES`.
        is_training: Whether images that cannot be read are replaced; what else timm makes of it.
        **timm_options: For ``timm.data.create_dataset`` (timm names only).

    Raises:
        FileNotFoundError: The folder, its split or a file is missing.
        ValueError: Unknown name or split, no folder given, or one that cannot be meant: without
            images, with classes without images, with class folders inside others.
    """
    name = ALIASES.get(name, name)
    variant, slash, inner = name.partition('/')
    if slash and variant.partition(':')[0] in VARIANTS:
        dataset = load_dataset(inner, root, split, 'RGB', is_training, **timm_options)
        groups = [group[0] for group in (_TRAIN, _EVAL) if split in group]
        changed = make_variant(variant, dataset, mode, salt=groups[0] if groups else split)
        if names := class_names(dataset):
            changed.classes = names
        return changed
    if name == 'digits':
        train = _is_train(split)
        if root is not None:
            raise ValueError(f"digits are built in, not read from {root}; --dataset '' is a folder")
        return ArrayDataset(*_digits(train), mode=mode)
    prefix = name.partition('/')[0].lower()
    if name not in ('', 'idx', 'strips') and prefix not in _TIMM_PREFIXES:
        raise ValueError(
            f'unknown data set {name!r}; known: digits, idx, strips, {", ".join(ALIASES)}, '
            f"{', '.join(p + '/...' for p in _TIMM_PREFIXES)}, '' for a folder of class folders, "
            f'{" or ".join(v + "/" for v in VARIANTS)} before any of them'
        )
    if root is None:
        raise ValueError(f'data set {name or "folder"!r} needs a folder: give --data-dir')
    if not Path(root).exists():
        raise FileNotFoundError(f'data folder {root} does not exist')
    if name == 'idx':
        return ArrayDataset(*_idx(Path(root), _is_train(split)), mode=mode)
    if name == 'strips':
        return ArrayDataset(*_strips(Path(root), _is_train(split)), mode=mode)
    if name == '':
        return _folder(Path(root), split, mode, is_training, timm_options)
    if prefix == 'torch':
        _is_train(split)  # timm reads any other split as the test set
    options = dict(split=split, input_img_mode=mode, is_training=is_training, **timm_options)
    try:
        dataset = create_dataset(name, root=str(root), **options)
    except (AssertionError, RuntimeError) as error:  # unknown torchvision name; files missing
        raise ValueError(f'{name}: {error}') from None
    if isinstance(dataset, ImageDataset):
        return ImageFiles(dataset.reader, mode, is_training)
    if prefix == 'torch':  # images as they were stored
        names, dataset = class_names(dataset), Converted(dataset, mode)
        if names:
            dataset.classes = names
    return dataset


def class_names(dataset: Dataset) -> list[str] | None:
    """Class names of a data set in label order; None where it does not tell."""
    if hasattr(dataset, 'classes'):
        return list(dataset.classes)
    reader = getattr(dataset, 'reader', None)
    to_index = getattr(reader, 'class_to_idx', getattr(reader, 'class_name_to_idx', None))
    if not to_index:
        return None
    return sorted(to_index, key=to_index.get)


def image_files(dataset: Dataset) -> tuple[ImageFiles | None, list[int] | slice]:
    """The image files that a data set consists of, if it does, and which of them it takes."""
    chosen = slice(None)
    while isinstance(dataset, (Portion, Variant)):
        if isinstance(dataset, Portion):
            chosen = dataset.chosen
        dataset = dataset.dataset
    return (dataset if isinstance(dataset, ImageFiles) else None), chosen


def summary(dataset: Dataset) -> str:
    """Contents of a data set: images, classes, the smallest one, files that were skipped."""
    if not hasattr(dataset, '__len__'):
        return 'images read in order'
    told, names, labels = f'{len(dataset):,} images', class_names(dataset), _labels(dataset)
    if names:
        told += f' of {len(names)} classes'
    if names and labels is not None:
        counts = np.bincount(labels, minlength=len(names))
        told += f', the smallest {names[counts.argmin()]!r} with {counts.min():,}'
    files, _ = image_files(dataset)
    if files is None or files.found is None:
        return told
    if files.found.nested:
        told += f'; classes are the innermost folders: {files.found.nested}'
    if files.found.skipped:
        told += f'; skipped {files.found.listed()}'
    return told


def unreadable(dataset: Dataset) -> str:
    """How many images cannot be read, as far as that was tried, the first and why; ``''`` if all.

    Raises:
        ValueError: No image of a class can be read.
    """
    files, chosen = image_files(dataset)
    if files is None:
        return ''
    flags = files.unreadable[chosen].numpy()
    if not flags.any():
        return ''
    numbers = np.arange(len(files))[chosen]
    first = files.reason(int(numbers[flags.argmax()]))
    labels = np.zeros(len(files), int) if files.labels is None else files.labels
    labels = labels[chosen]
    for label in np.unique(labels[flags]):
        if flags[labels == label].all():
            name = (class_names(files) or ['all'])[label]
            first = files.reason(int(numbers[labels == label][0]))
            raise ValueError(f'no image of class {name!r} can be read, {first}')
    return f'{flags.sum():,} of {len(flags):,} images cannot be read, {first}'


def _labels(dataset: Dataset) -> np.ndarray | None:
    """Class indices in order, where they are known without reading images."""
    if isinstance(dataset, Portion):
        labels = _labels(dataset.dataset)
        return None if labels is None else labels[dataset.chosen]
    if isinstance(dataset, Variant):
        return _labels(dataset.dataset)
    labels = getattr(dataset, 'labels', getattr(dataset, 'targets', None))  # ours, torchvision's
    return None if labels is None or np.ndim(labels) != 1 else np.asarray(labels)


def _is_train(split: str) -> bool:
    if split in _TRAIN:
        return True
    if split in _EVAL:
        return False
    raise ValueError(f'unknown split {split!r}; known: {", ".join(_TRAIN + _EVAL)}')


def _digits(train: bool):
    """8x8 scans resized to 32 px; every fifth of each class is for validation."""
    with needs('timm-topo[train]'):
        from sklearn.datasets import load_digits
    scans, labels = load_digits(return_X_y=True)
    rank = np.zeros(len(labels), dtype=int)  # the how-manieth of its class
    for digit in range(10):
        rank[labels == digit] = np.arange((labels == digit).sum())
    chosen = (rank % 5 != 4) if train else (rank % 5 == 4)
    grey = (scans[chosen].reshape(-1, 8, 8) * (255 / 16)).round().astype(np.uint8)
    images = [np.asarray(Image.fromarray(g).resize((32, 32), Image.BICUBIC)) for g in grey]
    return np.stack(images), labels[chosen], [str(digit) for digit in range(10)]


def _idx(root: Path, train: bool):
    """``train-images-idx3-ubyte[.gz]`` and its three siblings, in ``root`` or ``root/raw``."""
    stem = 'train' if train else 't10k'
    images, labels = (_read_idx(root, stem, kind) for kind in _IDX_KINDS)
    return (
        images,
        labels,
        [str(label) for label in range(int(labels.max()) + 1 if len(labels) else 0)],
    )


_IDX_KINDS = {'images-idx3': 3, 'labels-idx1': 1}  # and their dimensions


def _read_idx(root: Path, stem: str, kind: str) -> np.ndarray:
    name = f'{stem}-{kind}-ubyte'
    candidates = [folder / f for folder in (root, root / 'raw') for f in (name, f'{name}.gz')]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        raise FileNotFoundError(f'{root} has no {name} or {name}.gz (MNIST format)')
    opener = gzip.open if path.suffix == '.gz' else open
    try:
        with opener(path, 'rb') as file:
            data = file.read()
        magic = bytes([0, 0, 8, _IDX_KINDS[kind]])  # unsigned bytes, number of dimensions
        if data[:4] != magic:
            raise ValueError(f'it starts with {data[:4].hex()}, not {magic.hex()}')
        shape = [int.from_bytes(data[4 + 4 * i : 8 + 4 * i], 'big') for i in range(data[3])]
        return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)
    except (EOFError, IndexError, ValueError, OSError) as error:
        raise ValueError(f'{path} is truncated or not in MNIST format: {error}') from None


def _strips(root: Path, train: bool):
    """``train*.npz`` or ``test.npz`` of images stacked into lossless WebP strips; ``meta.json``."""
    files = sorted(root.glob('train*.npz' if train else 'test.npz'))
    if not files or not (root / 'meta.json').is_file():
        raise FileNotFoundError(f'{root} needs train*.npz, test.npz and meta.json (WebP strips)')
    parts = [_read_strips(path) for path in files]
    classes = json.loads((root / 'meta.json').read_text(encoding='utf-8'))['classes']
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts]), classes


def _read_strips(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        return _unpack(path)
    except (zipfile.BadZipFile, KeyError, OSError, ValueError) as error:
        raise ValueError(f'{path} is truncated or holds no WebP strips: {error}') from None


def _unpack(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(path) as packed:
        images = np.empty(packed['shape'], np.uint8)
        data, offsets, order = packed['webp'].tobytes(), packed['off'], packed['order']
        labels = packed['y']
    start = 0
    for begin, end in pairwise(offsets):
        strip = np.asarray(Image.open(io.BytesIO(data[begin:end])).convert('RGB'))
        strip = strip.reshape(-1, *images.shape[1:])
        images[order[start : start + len(strip)]] = strip
        start += len(strip)
    if not start == len(images) == len(labels):
        raise ValueError(f'{start} images in the strips for {len(labels)} labels')
    return images, labels


def _folder(root: Path, split: str, mode: str, training: bool, options: dict) -> Dataset:
    """A folder (or tar) of class folders; the split must be there, not guessed."""
    if not root.is_dir():
        return ImageFiles(_tar(root, options), mode, training)
    synonyms = next((group for group in (_TRAIN, _EVAL) if split in group), (split,))
    folder = next((root / name for name in (split, *synonyms) if (root / name).exists()), None)
    if folder is None:
        has = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())[:8]
        raise FileNotFoundError(
            f'{root} has no folder for split {split!r} (looked for {", ".join(synonyms)}; '
            f'it has {", ".join(has) or "no folders"})'
        )
    try:
        found = contents(folder)
    except ValueError as error:
        raise ValueError(f'{folder}, split {split!r}: {error}') from None
    options.setdefault('class_map', {name: label for label, name in enumerate(found.classes)})
    options.setdefault('input_key', ';'.join(SUFFIXES))
    reader = create_dataset('', root=str(folder), search_split=False, **options).reader
    reader.samples = [
        (path, label)
        for path, label in reader.samples
        if not hidden(Path(path).relative_to(folder))
    ]
    return ImageFiles(reader, mode, training, found)


def _tar(path: Path, options: dict):
    """timm's reader of a tar, which takes the suffixes that are set for all readers."""
    before = get_img_extensions()
    set_img_extensions(SUFFIXES)
    try:
        return create_dataset('', root=str(path), **options).reader
    except (RuntimeError, ValueError, OSError) as error:
        raise ValueError(f'no images in {path}: {error}') from None
    finally:
        set_img_extensions(before)


def examples(dataset: Dataset, count: int) -> list[np.ndarray | None]:
    """An image ``(H, W, 3)`` of each of the first ``count`` classes; None where 5,000 have none."""
    found = {}
    order = np.random.default_rng(0).permutation(len(dataset))
    for index in order[:5000].tolist():
        image, label = dataset[index]
        if label < count and label not in found:
            found[label] = np.asarray(image.convert('RGB'))
        if len(found) == count:
            break
    return [found.get(label) for label in range(count)]
