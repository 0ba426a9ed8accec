"""A small detection data set that the project makes itself: scans of digits on noisy canvases.

scikit-learn's 8x8 scans of handwritten digits (those that ``timm_topo.data`` trains on for the
training canvases, its validation scans for the others) are enlarged and put on a canvas with noise
and clutter, coloured, with their boxes. Drawn from a seed, so that every machine has the same.
"""

import json
import os
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from PIL import Image

from timm_topo.data import load_dataset
from timm_topo.files import scratch_folder

__all__ = ['make_digits']

SIZES = {'train': 200, 'val': 60}
CANVAS = 128  # pixels
SCAN = (28, 56)  # pixels, least and most
PER_CANVAS = 4  # digits, at most


def make_digits(
    folder: str | Path, split: str, num_images: int | None = None, size: int = CANVAS
) -> tuple[Path, Path]:
    """Write a split, unless it is there.

    Args:
        folder: Where to; parents are made. The split appears there whole or not at all.
        split: ``'train'`` or ``'val'``.
        num_images: How many canvases; by default 200 and 60.
        size: Width and height of a canvas in pixels, at least 64.

    Returns:
        The JSON file in COCO's format, and the folder with the images.

    Raises:
        ValueError: Another split, or numbers that make no canvases.
    """
    if split not in SIZES:
        raise ValueError(f'unknown split {split!r}; known: {", ".join(SIZES)}')
    num_images = SIZES[split] if num_images is None else num_images
    if num_images < 1 or size < 64:
        raise ValueError(f'{num_images} canvases of {size} pixels; at least 1 of 64 needed')
    folder = Path(folder).resolve()
    name = f'{split}-{num_images}-{size}'
    target = folder / name
    if not target.is_dir():
        with scratch_folder(target) as scratch:
            _write(scratch / name, split, num_images, size)
            try:
                os.rename(scratch / name, target)
            except OSError:  # another process was first
                if not target.is_dir():
                    raise
    return target / 'annotations.json', target / 'images'


def _write(folder: Path, split: str, num_images: int, size: int) -> None:
    scans = load_dataset('digits', split='train' if split == 'train' else 'validation')
    rng = np.random.default_rng([20200817, list(SIZES).index(split)])
    (folder / 'images').mkdir(parents=True)
    images, annotations = [], []
    for index in range(1, num_images + 1):
        canvas, digits = _draw(rng, scans.images, size)
        file = f'{index:05d}.png'
        Image.fromarray(canvas).save(folder / 'images' / file)
        images.append({'id': index, 'file_name': file, 'width': size, 'height': size})
        for scan, (x, y, w, h) in digits:
            annotations.append(
                {
                    'id': len(annotations) + 1,
                    'image_id': index,
                    'category_id': int(scans.labels[scan]) + 1,
                    'bbox': [x, y, w, h],
                    'area': w * h,
                    'iscrowd': 0,
                }
            )
    content = {
        'info': {'description': f'scans of digits on canvases, {split}'},
        'images': images,
        'annotations': annotations,
        'categories': [{'id': k + 1, 'name': name} for k, name in enumerate(scans.classes)],
    }
    (folder / 'annotations.json').write_text(json.dumps(content), encoding='utf-8')


def _draw(rng: np.random.Generator, scans: np.ndarray, size: int):
    """A canvas (uint8, RGB), and the scans on it with their boxes (x, y, w, h)."""
    canvas = rng.normal(rng.uniform(10, 60, size=3), 12, size=(size, size, 3))
    for _ in range(6):  # clutter: bars in any colour
        x, y = rng.integers(0, size - 4, size=2)
        w, h = rng.permutation([rng.integers(2, 5), rng.integers(8, size // 3)])
        canvas[y : y + h, x : x + w] = rng.uniform(30, 200, size=3)
    taken, digits = [], []
    for _ in range(int(rng.integers(1, PER_CANVAS + 1))):
        scan, side = int(rng.integers(len(scans))), int(rng.integers(SCAN[0], SCAN[1] + 1))
        for _ in range(20):  # until there is room
            x, y = (int(v) for v in rng.integers(0, size - side + 1, size=2))
            if all(_apart((x, y, side), other) for other in taken):
                break
        else:
            continue
        taken.append((x, y, side))
        ink = np.asarray(Image.fromarray(scans[scan]).resize((side, side), Image.BICUBIC)) / 255.0
        part = canvas[y : y + side, x : x + side]
        part += ink[..., None] * (rng.uniform(150, 255, size=3) - part)
        rows, columns = (np.flatnonzero((ink > 0.25).any(axis)) for axis in (1, 0))
        left, top = int(columns[0]), int(rows[0])
        digits.append(
            (scan, (x + left, y + top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top))
        )
    return canvas.clip(0, 255).astype(np.uint8), digits


def _apart(one: tuple, other: tuple) -> bool:
    return any(one[k] >= other[k] + other[2] or other[k] >= one[k] + one[2] for k in (0, 1))


def _dicts(split: str) -> list[dict]:
    """What detectron2's catalog returns: made at the first use, below $DETECTRON2_DATASETS."""
    folder = Path(os.environ.get('DETECTRON2_DATASETS', 'datasets')) / 'topo_digits'
    annotations, images = make_digits(folder, split)
    name = f'topo_digits_{split}'
    dicts = load_coco_json(str(annotations), str(images), name)
    MetadataCatalog.get(name).set(
        json_file=str(annotations), image_root=str(images), evaluator_type='coco'
    )
    return dicts


for _split in SIZES:
    if f'topo_digits_{_split}' not in DatasetCatalog.list():
        DatasetCatalog.register(f'topo_digits_{_split}', lambda split=_split: _dicts(split))
