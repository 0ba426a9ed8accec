"""Data sets with boxes: the built-in digits, and COCO files by name."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip(
    'detectron2',
    reason='detectron2 is not installed: https://detectron2.readthedocs.io/tutorials/install.html',
)

from detectron2.data import DatasetCatalog, MetadataCatalog

from d2_topo.data import make_digits, register_coco
from timm_topo.data import load_dataset


@pytest.mark.parametrize('split', ['train', 'val'])
def test_digits_are_where_the_boxes_say(split, tmp_path):
    """Boxes are tight around ink brighter or darker than the noise, inside, and do not overlap."""
    annotations, images = make_digits(tmp_path, split, 20, 128)
    content = json.loads(annotations.read_text())
    assert [image['file_name'] for image in content['images']] == sorted(
        path.name for path in images.iterdir()
    )
    assert len(content['images']) == 20
    assert [c['name'] for c in content['categories']] == [str(digit) for digit in range(10)]
    by_image = {image['id']: [] for image in content['images']}
    for found in content['annotations']:
        x, y, w, h = found['bbox']
        assert x >= 0
        assert y >= 0
        assert x + w <= 128
        assert y + h <= 128
        assert min(w, h) >= 4
        assert found['area'] == w * h
        by_image[found['image_id']].append((x, y, x + w, y + h))
    for boxes in by_image.values():
        assert 1 <= len(boxes) <= 4
        for k, one in enumerate(boxes):
            for other in boxes[:k]:
                apart = (one[0] >= other[2] or other[0] >= one[2] or one[1] >= other[3]
                         or other[1] >= one[3])  # fmt: skip
                assert apart


def test_a_classifier_knows_the_digits_in_the_boxes(tmp_path):
    """Labels are right: nearest neighbours among the scans tell the digit on the canvas."""
    annotations, images = make_digits(tmp_path, 'val', 30, 128)
    content = json.loads(annotations.read_text())
    scans = load_dataset('digits', split='train')
    tight = np.stack([shape_of(scan / 255.0) for scan in scans.images]).reshape(len(scans), -1)
    files = {image['id']: image['file_name'] for image in content['images']}
    right = []
    for found in content['annotations']:
        x, y, w, h = found['bbox']
        canvas = np.asarray(Image.open(images / files[found['image_id']])).astype(float)
        crop = canvas[y : y + h, x : x + w].mean(2)
        crop = (crop - crop.min()) / (np.ptp(crop) + 1e-6)
        nearest = np.abs(tight - shape_of(crop, crop=False).ravel()).sum(1).argmin()
        right.append(scans.labels[nearest] + 1 == found['category_id'])
    assert np.mean(right) > 0.7  # noise and clutter; chance is 0.1


def shape_of(ink: np.ndarray, crop: bool = True) -> np.ndarray:
    """8x8 picture of the tight box around the ink."""
    if crop:
        rows, columns = (np.flatnonzero((ink > 0.25).any(axis)) for axis in (1, 0))
        ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return np.asarray(Image.fromarray((255 * ink).astype(np.uint8)).resize((8, 8))) / 255.0


@pytest.mark.parametrize(('split', 'scans'), [('train', 'train'), ('val', 'validation')])
def test_no_scan_is_in_both_splits(split, scans, tmp_path, monkeypatch):
    asked = []

    def load(name, split):
        asked.append(split)
        return load_dataset(name, split=split)

    monkeypatch.setattr('d2_topo.data.digits.load_dataset', load)
    make_digits(tmp_path, split, 1, 64)
    assert asked == [scans]


def test_digits_are_the_same_everywhere_and_made_once(tmp_path):
    one, two = (make_digits(tmp_path / name, 'val', 3, 64) for name in 'ab')
    assert one[0].read_text() == two[0].read_text()
    for path in one[1].iterdir():
        assert path.read_bytes() == (two[1] / path.name).read_bytes()
    before = one[0].stat().st_mtime_ns
    assert make_digits(tmp_path / 'a', 'val', 3, 64) == one
    assert one[0].stat().st_mtime_ns == before
    other = make_digits(tmp_path / 'a', 'train', 3, 64)
    assert other[0].read_text() != one[0].read_text()
    assert {path.name for path in (tmp_path / 'a').iterdir()} == {'train-3-64', 'val-3-64'}


def test_an_interrupted_making_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr('d2_topo.data.digits._draw', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make_digits(tmp_path, 'val', 3, 64)
    assert list(tmp_path.iterdir()) == []


def test_the_registered_digits(tmp_path, monkeypatch):
    monkeypatch.setenv('DETECTRON2_DATASETS', str(tmp_path))
    monkeypatch.setattr('d2_topo.data.digits.SIZES', {'train': 4, 'val': 2})
    found = DatasetCatalog.get('topo_digits_val')
    assert len(found) == 2
    assert Path(found[0]['file_name']).is_file()
    metadata = MetadataCatalog.get('topo_digits_val')
    assert metadata.thing_classes == [str(digit) for digit in range(10)]
    assert Path(metadata.json_file).is_file()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('test',), r"unknown split 'test'; known: train, val"),
        (('val', 0), r'0 canvases of 128 pixels'),
        (('val', 3, 32), r'3 canvases of 32 pixels'),
    ],
)
def test_digits_that_cannot_be_made(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        make_digits(tmp_path, *arguments)


def test_registering_coco_files(tmp_path):
    annotations, images = make_digits(tmp_path, 'train', 8, 64)
    assert register_coco('mine', annotations, images) == 'mine'
    assert register_coco('mine', annotations, images) == 'mine'  # again, as LazyConfigs do
    assert len(DatasetCatalog.get('mine')) == 8
    copy = tmp_path / 'copy.json'
    copy.write_text(annotations.read_text())
    with pytest.raises(ValueError, match=r'data set mine is registered already, with other files'):
        register_coco('mine', copy, images)
    with pytest.raises(ValueError, match=r'coco_2017_val is registered already'):
        register_coco('coco_2017_val', annotations, images)
    for text, message in (
        ('{', 'is not in COCO format'),
        ('[]', 'is not in COCO format'),
        ('{"images": []}', 'is not in COCO format'),
        ('{"images": [], "annotations": [], "categories": []}', 'is empty'),
    ):
        copy.write_text(text)
        with pytest.raises(ValueError, match=message):
            register_coco('broken', copy, images)
    with pytest.raises(FileNotFoundError, match=r'annotations .*none.json do not exist'):
        register_coco('broken', tmp_path / 'none.json', images)
    with pytest.raises(FileNotFoundError, match=r'image folder .*none does not exist'):
        register_coco('broken', annotations, tmp_path / 'none')
