"""Data sets in COCO's format, by name."""

import json
from pathlib import Path

from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_coco_instances

__all__ = ['register_coco']


def register_coco(name: str, annotations: str | Path, images: str | Path) -> str:
    """Register a data set, unless the name is taken by the same files already.

    Args:
        name: What ``DATASETS.TRAIN`` or ``get_detection_dataset_dicts`` will call it.
        annotations: JSON file in COCO's format.
        images: Folder with the images.

    Returns:
        ``name``, so that a LazyConfig can use a call of this function as the name.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: The name stands for other files; or the file is not in COCO's format, or has
            no images.
    """
    annotations, images = Path(annotations).resolve(), Path(images).resolve()
    if not annotations.is_file():
        raise FileNotFoundError(f'data set {name}: annotations {annotations} do not exist')
    if not images.is_dir():
        raise FileNotFoundError(f'data set {name}: image folder {images} does not exist')
    if name in DatasetCatalog.list():
        if _files.get(name) != (annotations, images):
            raise ValueError(f'data set {name} is registered already, with other files')
        return name
    try:
        content = json.loads(annotations.read_text(encoding='utf-8'))
        counts = {key: len(content[key]) for key in ('images', 'annotations', 'categories')}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'data set {name}: {annotations} is not in COCO format: {error!r}'
        ) from None
    if not counts['images'] or not counts['categories']:
        raise ValueError(f'data set {name}: {annotations} is empty: {counts}')
    register_coco_instances(name, {}, str(annotations), str(images))
    _files[name] = (annotations, images)
    return name


_files = {}
