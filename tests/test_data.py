"""Data sets by name, each against an independent reading; and every way to name a wrong one."""

import gzip
import io
import json
import struct
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits

from timm_topo.data import ArrayDataset, class_names, load_dataset
from timm_topo.training.loop import train
from timm_topo.training.options import parse_args

RNG = np.random.default_rng(0)
SCANS = RNG.integers(0, 256, (12, 6, 5), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (12, 4, 4, 3), dtype=np.uint8)
LABELS = np.array([2, 0, 1] * 4, dtype=np.uint8)
SPLITS = {'train': 'train', 'validation': 't10k'}


def pixels(dataset) -> np.ndarray:
    return np.stack([np.asarray(image) for image, _ in dataset])


def labels(dataset) -> list[int]:
    return [label for _, label in dataset]


# -- digits ---------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def digits():
    return {split: load_dataset('digits', split=split) for split in ('train', 'validation')}


def test_digits_are_1797_scans_of_ten_classes_as_32_px_rgb(digits):
    assert sum(len(dataset) for dataset in digits.values()) == 1797
    for dataset in digits.values():
        image, label = dataset[0]
        assert (image.mode, image.size) == ('RGB', (32, 32))
        assert type(label) is int
        assert class_names(dataset) == list('0123456789')


def test_digits_are_split_into_all_scans_without_overlap(digits):
    scans, targets = load_digits(return_X_y=True)
    whole = [(scan.tobytes(), label) for scan, label in zip(scans, targets.tolist())]
    assert len(set(whole)) == 1797, 'no scan is there twice, so that a shared one would show'
    split = [
        (image.tobytes(), label)
        for dataset in digits.values()
        for image, label in zip(dataset.images, dataset.labels.tolist())
    ]
    assert len(set(split)) == 1797
    assert Counter(label for _, label in split) == Counter(label for _, label in whole)


def test_digits_are_split_one_in_five_within_every_class(digits):
    train, validation = (Counter(labels(digits[split])) for split in ('train', 'validation'))
    for digit in range(10):
        assert validation[digit] == (train[digit] + validation[digit]) // 5


def test_digits_are_sklearns_scans_resized_bicubically(digits):
    """Within two grey levels of torch's bicubic, in two passes of bytes as Pillow works."""
    scans, targets = load_digits(return_X_y=True)
    seen, chosen = Counter(), {'train': [], 'validation': []}
    for scan, digit in zip(scans, targets.tolist()):
        seen[digit] += 1
        chosen['train' if seen[digit] % 5 else 'validation'].append((scan, digit))
    for split, pairs in chosen.items():
        grey = torch.tensor(np.stack([scan for scan, _ in pairs]) * 255 / 16).view(-1, 1, 8, 8)
        for size in ((8, 32), (32, 32)):
            grey = grey.round().clamp(0, 255)
            grey = F.interpolate(grey, size, mode='bicubic', antialias=True)
        expected = grey.clamp(0, 255).squeeze(1).numpy()
        assert labels(digits[split]) == [digit for _, digit in pairs]
        found = pixels(digits[split])
        assert (found == found[..., :1]).all(), 'grey'
        assert np.abs(found[..., 0] - expected).max() < 2


def test_digits_are_the_same_every_time(digits):
    again = load_dataset('digits', split='train')
    assert np.array_equal(again.images, digits['train'].images)
    assert np.array_equal(again.labels, digits['train'].labels)


# -- idx ------------------------------------------------------------------------------------------


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f'>{array.ndim}I', *array.shape) + array.data


def write_idx(folder, scans=SCANS, targets=LABELS, zipped=True, splits=('train', 'validation')):
    folder.mkdir(parents=True, exist_ok=True)
    for split in splits:
        for kind, array in (('images-idx3', scans), ('labels-idx1', targets)):
            name, data = f'{SPLITS[split]}-{kind}-ubyte', idx_bytes(np.ascontiguousarray(array))
            path = folder / (f'{name}.gz' if zipped else name)
            path.write_bytes(gzip.compress(data) if zipped else data)
    return folder


@pytest.mark.parametrize('zipped', [True, False], ids=['gz', 'plain'])
@pytest.mark.parametrize('place', ['.', 'raw'])
def test_idx_reads_the_files_of_mnist(tmp_path, zipped, place):
    write_idx(tmp_path / place, SCANS[:9], LABELS[:9], zipped, ['train'])
    write_idx(tmp_path / place, SCANS[9:], LABELS[9:], zipped, ['validation'])
    for split, part in (('train', slice(9)), ('validation', slice(9, None))):
        dataset = load_dataset('idx', tmp_path, split, mode='L')
        assert np.array_equal(pixels(dataset), SCANS[part])
        assert labels(dataset) == LABELS[part].tolist()
        assert class_names(dataset) == ['0', '1', '2']


def test_idx_gives_grey_scans_as_rgb_by_default(tmp_path):
    dataset = load_dataset('idx', str(write_idx(tmp_path)))
    assert np.array_equal(pixels(dataset), np.stack([SCANS] * 3, axis=-1))


def test_idx_without_its_files_is_refused(tmp_path):
    write_idx(tmp_path, splits=['train'])
    load_dataset('idx', tmp_path, 'train')
    message = r'has no t10k-images-idx3-ubyte or t10k-images-idx3-ubyte\.gz \(MNIST format\)'
    with pytest.raises(FileNotFoundError, match=message):
        load_dataset('idx', tmp_path, 'validation')


@pytest.mark.parametrize('zipped', [True, False], ids=['gz', 'plain'])
@pytest.mark.parametrize('keep', [0, 3, 14, -1])
@pytest.mark.parametrize('name', ['train-images-idx3-ubyte', 'train-labels-idx1-ubyte'])
def test_truncated_idx_is_refused(tmp_path, zipped, keep, name):
    write_idx(tmp_path, zipped=zipped)
    path = tmp_path / (f'{name}.gz' if zipped else name)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=f'{path.name} is truncated or not in MNIST format'):
        load_dataset('idx', tmp_path)


@pytest.mark.parametrize(
    'content',
    [
        b'hello, this is a text',
        bytes([1, 2, 8, 3]) + idx_bytes(SCANS)[4:],
        bytes([0, 0, 13, 3]) + idx_bytes(SCANS)[4:],
        idx_bytes(LABELS),
    ],
    ids=['text', 'magic', 'floats', 'labels'],
)
def test_a_file_of_another_format_is_no_idx(tmp_path, content):
    write_idx(tmp_path, zipped=False)
    (tmp_path / 'train-images-idx3-ubyte').write_bytes(content)
    with pytest.raises(ValueError, match='is truncated or not in MNIST format'):
        load_dataset('idx', tmp_path)


def test_idx_without_images_is_refused(tmp_path):
    write_idx(tmp_path, SCANS[:0], LABELS[:0])
    with pytest.raises(ValueError, match='0 images and 0 labels make no data set'):
        load_dataset('idx', tmp_path)


def test_idx_with_more_images_than_labels_is_refused(tmp_path):
    write_idx(tmp_path, targets=LABELS[:-1])
    with pytest.raises(ValueError, match='12 images and 11 labels make no data set'):
        load_dataset('idx', tmp_path)


# -- strips ---------------------------------------------------------------------------------------


def write_strips(path, images, targets, per_strip=5, seed=0):
    """``images[order]`` one below another in lossless WebP files, one after another in ``webp``."""
    order = np.random.default_rng(seed).permutation(len(images))
    strips = []
    for start in range(0, len(images), per_strip):
        stacked = np.concatenate(images[order[start : start + per_strip]])
        file = io.BytesIO()
        Image.fromarray(stacked).save(file, 'WEBP', lossless=True)
        strips.append(np.frombuffer(file.getvalue(), np.uint8))
    np.savez(
        path,
        shape=images.shape,
        webp=np.concatenate(strips),
        off=np.cumsum([0] + [len(strip) for strip in strips]),
        order=order,
        y=targets,
    )


@pytest.fixture
def strips(tmp_path):
    """Eight training images in two files, four for validation."""
    write_strips(tmp_path / 'train-0.npz', COLOUR[:6], LABELS[:6])
    write_strips(tmp_path / 'train-1.npz', COLOUR[6:8], LABELS[6:8])
    write_strips(tmp_path / 'test.npz', COLOUR[8:], LABELS[8:])
    (tmp_path / 'meta.json').write_text(json.dumps({'classes': ['cat', 'apple', 'bee']}))
    return tmp_path


def test_strips_give_back_every_pixel(strips):
    for split, part in (('train', slice(8)), ('validation', slice(8, None))):
        dataset = load_dataset('strips', strips, split)
        assert np.array_equal(pixels(dataset), COLOUR[part])
        assert labels(dataset) == LABELS[part].tolist()
        assert class_names(dataset) == ['cat', 'apple', 'bee']


@pytest.mark.parametrize('missing', ['meta.json', 'test.npz'])
def test_strips_without_a_file_are_refused(strips, missing):
    (strips / missing).unlink()
    with pytest.raises(FileNotFoundError, match=r'needs train\*.npz, test.npz and meta.json'):
        load_dataset('strips', strips, 'validation')


def test_a_label_beyond_the_classes_is_refused(strips):
    (strips / 'meta.json').write_text(json.dumps({'classes': ['cat', 'apple']}))
    with pytest.raises(ValueError, match='labels 0 to 2 do not fit 2 classes'):
        load_dataset('strips', strips)


# -- folders of class folders ---------------------------------------------------------------------


def write_folder(root, split, classes=('ant', 'bee'), images=2):
    for number, name in enumerate(classes):
        (root / split / name).mkdir(parents=True)
        for image in range(images):
            Image.new('RGB', (4, 4), (number, image, 7)).save(root / split / name / f'{image}.png')
    return root


@pytest.mark.parametrize(
    ('folder', 'asked'),
    [
        ('train', 'train'),
        ('training', 'train'),
        ('train', 'training'),
        *((name, 'validation') for name in ('validation', 'valid', 'val', 'eval', 'evaluation')),
        ('validation', 'val'),
        ('test', 'test'),
    ],
)
def test_a_folder_is_found_under_any_usual_name_of_its_split(tmp_path, folder, asked):
    write_folder(tmp_path, folder)
    write_folder(tmp_path, 'other', classes=('wrong',))
    dataset = load_dataset('', tmp_path, asked)
    assert class_names(dataset) == ['ant', 'bee']
    assert sorted(labels(dataset)) == [0, 0, 1, 1]
    assert {tuple(image[0, 0]) for image in pixels(dataset)} == {
        (number, image, 7) for number in (0, 1) for image in (0, 1)
    }


def test_of_several_names_of_a_split_the_one_asked_for_wins(tmp_path):
    write_folder(tmp_path, 'validation', classes=('wrong',))
    write_folder(tmp_path, 'val')
    assert class_names(load_dataset('', tmp_path, 'val')) == ['ant', 'bee']


def test_a_folder_without_the_split_is_refused_and_says_what_it_has(tmp_path):
    write_folder(tmp_path, 'train')
    message = r"no folder for split 'validation' \(looked for validation, valid.*; it has train\)"
    with pytest.raises(FileNotFoundError, match=message):
        load_dataset('', tmp_path, 'validation')
    message = r"no folder for split 'tset' \(looked for tset; it has train\)"
    with pytest.raises(FileNotFoundError, match=message):
        load_dataset('', tmp_path, 'tset')


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match='it has no folders'):
        load_dataset('', tmp_path)


@pytest.mark.parametrize('classes', [(), ('ant', 'bee')], ids=['no_classes', 'empty_classes'])
def test_a_split_without_images_is_refused(tmp_path, classes):
    (tmp_path / 'train').mkdir()
    write_folder(tmp_path, 'train', classes, images=0)
    with pytest.raises(ValueError, match=r"train, split 'train': no images: no files at all"):
        load_dataset('', tmp_path)


# -- timm's names ---------------------------------------------------------------------------------


def test_names_of_torchvision_go_to_timm(tmp_path):
    write_idx(tmp_path / 'MNIST' / 'raw', SCANS[:9], LABELS[:9], zipped=False, splits=['train'])
    write_idx(tmp_path / 'MNIST' / 'raw', SCANS[9:], LABELS[9:], False, ['validation'])
    for split, part in (('train', slice(9)), ('val', slice(9, None))):
        dataset = load_dataset('torch/mnist', tmp_path, split, 'L')
        assert np.array_equal(pixels(dataset), SCANS[part])
        assert load_dataset('torch/mnist', tmp_path, split)[0][0].mode == 'RGB'
        assert len(class_names(dataset)) == 10


def test_a_data_set_that_tells_no_classes_has_no_class_names():
    assert class_names([]) is None


@pytest.mark.parametrize('name', ['mnist', 'cifar100'])
def test_an_empty_folder_for_torchvision_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=rf'torch/{name}: Dataset not found.* download=True'):
        load_dataset(f'torch/{name}', tmp_path)


def test_unknown_names_of_torchvision_are_refused(tmp_path):
    with pytest.raises(ValueError, match='torch/fake: Unknown torchvision dataset fake'):
        load_dataset('torch/fake', tmp_path)


@pytest.mark.parametrize('name', ['cifar', 'Digits', 'mnist/torch', 'folder'])
def test_unknown_names_are_refused_and_the_known_ones_listed(name, tmp_path):
    message = (
        f"unknown data set '{name}'; known: digits, idx, strips, cmnist, ckmnist, cfashionmnist, "
        'cifar10, cifar10_t8, torch/..., hfds/...,'
    )
    with pytest.raises(ValueError, match=message):
        load_dataset(name, tmp_path)


# -- what every name refuses ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ('name', 'shown'),
    [('', 'folder'), ('idx', 'idx'), ('strips', 'strips'), ('torch/cifar10', 'torch/cifar10')],
)
def test_no_folder_or_a_missing_one_is_refused(name, shown, tmp_path):
    with pytest.raises(ValueError, match=f"data set '{shown}' needs a folder: give --data-dir"):
        load_dataset(name)
    with pytest.raises(FileNotFoundError, match=r'data folder .*nowhere does not exist'):
        load_dataset(name, tmp_path / 'nowhere')


@pytest.mark.parametrize('name', ['digits', 'idx', 'strips', 'torch/cifar10'])
@pytest.mark.parametrize('split', ['test', 'Train', ''])
def test_unknown_splits_are_refused(name, split, tmp_path):
    message = f"unknown split '{split}'; known: train, training, validation, valid, val, eval,"
    with pytest.raises(ValueError, match=message):
        load_dataset(name, tmp_path, split)


@pytest.mark.parametrize(
    ('images', 'targets', 'classes', 'message'),
    [
        (SCANS[:0], LABELS[:0], 'abc', '0 images and 0 labels make no data set'),
        (SCANS, LABELS[:3], 'abc', '12 images and 3 labels make no data set'),
        (SCANS, LABELS, 'ab', 'labels 0 to 2 do not fit 2 classes'),
        (SCANS, LABELS.astype(int) - 1, 'abc', 'labels -1 to 1 do not fit 3 classes'),
    ],
)
def test_arrays_that_make_no_data_set_are_refused(images, targets, classes, message):
    with pytest.raises(ValueError, match=message):
        ArrayDataset(images, targets, classes)


# -- what training refuses ------------------------------------------------------------------------


def refused(tmp_path, *argv):
    """Start a training run that must not get as far as making its folder."""
    output = tmp_path / 'output'
    common = ['--model', 'test_toponet', '--workers', '0', '--output', str(output)]
    try:
        train(parse_args([*common, *map(str, argv)]))
    finally:
        assert not output.exists()


def test_splits_of_different_classes_are_refused(tmp_path):
    write_folder(tmp_path, 'train', ('ant', 'bee', 'cat'))
    write_folder(tmp_path, 'val', ('ant', 'bee'))
    message = 'training data has 3 classes, validation data 2; not in both: cat'
    with pytest.raises(ValueError, match=message):
        refused(tmp_path, '--dataset', '', '--data-dir', tmp_path)


def test_splits_of_as_many_but_other_classes_are_refused(tmp_path):
    write_folder(tmp_path, 'train', ('ant', 'bee'))
    write_folder(tmp_path, 'val', ('ant', 'cow'))
    message = 'training data has 2 classes, validation data 2; not in both: bee, cow'
    with pytest.raises(ValueError, match=message):
        refused(tmp_path, '--dataset', '', '--data-dir', tmp_path)


def test_a_number_of_classes_that_is_not_the_datas_is_refused(tmp_path):
    with pytest.raises(ValueError, match='--num-classes 7, but the data has 10 classes'):
        refused(tmp_path, '--num-classes', 7)


def test_a_batch_larger_than_the_data_set_is_refused(tmp_path):
    write_idx(tmp_path)
    message = r'12 training images make no batch of 13 in 1 process\(es\)'
    with pytest.raises(ValueError, match=message):
        refused(tmp_path, '--dataset', 'idx', '--data-dir', tmp_path, '--batch-size', 13)


def test_a_data_set_without_class_names_needs_their_number(tmp_path, monkeypatch):
    monkeypatch.setattr('timm_topo.training.build.class_names', lambda dataset: None)
    with pytest.raises(ValueError, match="'digits' does not tell its classes: --num-classes"):
        refused(tmp_path)


def test_digits_are_not_looked_for_in_a_folder(tmp_path):
    with pytest.raises(ValueError, match='digits are built in, not read from'):
        load_dataset('digits', tmp_path)
