"""Image files: what folders hold, and what becomes of files that are not plain 8-bit images."""

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.utils import init_distributed_device

import timm_topo
from timm_topo.cli import main as topo
from timm_topo.data import class_names, load_dataset, summary, unreadable
from timm_topo.images import SUFFIXES, UNREADABLE, image_mode, read_image
from timm_topo.training.build import Run, build
from timm_topo.training.evaluate import accuracy, eval_loader, evaluate, image_batches
from timm_topo.training.loop import train
from timm_topo.training.options import parse_args

LEVELS = {'ant': 40, 'bee': 120, 'cow': 200}
CPU = torch.device('cpu')


def fill(root: Path, split: str, classes=LEVELS, count: int = 3, suffix: str = '.png') -> Path:
    """Grey images of one level per class in ``root/split/class``."""
    for name, level in LEVELS.items():
        if name in classes:
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                image = Image.new('RGB', (8, 8), (level,) * 3)
                image.save(root / split / name / f'{number}{suffix}', quality=95)
    return root


@pytest.fixture
def root(tmp_path) -> Path:
    return fill(fill(tmp_path / 'data', 'train'), 'val')


def arguments(root: Path, output: Path, *extra) -> list[str]:
    common = dict(
        data_dir=root, model='test_toponet', img_size=8, workers=0, batch_size=3, lr=0.01,
        epochs=1, output=output, experiment='run', device='cpu',
    )  # fmt: skip
    options = [f'--{key.replace("_", "-")}={value}' for key, value in common.items()]
    return [*options, '--no-tensorboard', '--no-aug', *map(str, extra)]


def built(args: list[str]) -> Run:
    args = parse_args(args)
    return build(args, init_distributed_device(args))[0]


def run(root: Path, output: Path, *extra) -> dict:
    return train(parse_args(arguments(root, output, *extra)))


def damage(*paths: Path) -> None:
    for path in paths:
        path.write_bytes(path.read_bytes()[:40])


# -- what a folder holds --------------------------------------------------------------------------


def test_a_run_says_what_it_found(root, tmp_path, capsys):
    fill(root, 'train', ['ant', 'cow'], count=5)
    for name in ('notes.txt', 'train/ant/0.heic', 'train/cow/1.HEIC', 'train/labels'):
        (root / name).write_text('no image')
    run(root, tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        "train: 13 images of 3 classes, the smallest 'bee' with 3; skipped 2 .heic, 1 labels",
        "validation: 9 images of 3 classes, the smallest 'ant' with 3",
    ]


def test_commands_say_what_they_found_beside_their_output(root, tmp_path, capsys):
    model = timm.create_model('test_toponet', num_classes=3)
    folder = timm_topo.save(model, tmp_path / 'net', list(LEVELS))
    (root / 'val' / 'ant' / 'x.heic').touch()
    assert topo(['inspect', str(folder), '--dataset', '', '--data-dir', str(root)]) == 0
    told = capsys.readouterr()
    line = "9 images of 3 classes, the smallest 'ant' with 3; skipped 1 .heic"
    assert line in told.err
    assert line not in told.out


@pytest.mark.parametrize('place', ['.ipynb_checkpoints', 'ant/.ipynb_checkpoints', '__MACOSX/bee',
                                   'ant/@eaDir', '.cache/ant'])  # fmt: skip
def test_what_tools_leave_is_neither_a_class_nor_an_image(root, place):
    (root / 'train' / place).mkdir(parents=True)
    Image.new('RGB', (8, 8)).save(root / 'train' / place / '0.png')
    Image.new('RGB', (8, 8)).save(root / 'train' / 'cow' / '._0.png')
    dataset = load_dataset('', root)
    assert class_names(dataset) == list(LEVELS)
    assert [label for _, label in dataset] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert summary(dataset).endswith('skipped 2 hidden')


def move(root: Path, *pairs: tuple[str, str]) -> None:
    for old, new in pairs:
        (root / new).parent.mkdir(parents=True, exist_ok=True)
        os.rename(root / old, root / new)


NOT_MEANT = {
    'front and back': (
        [('ant', 'x/front'), ('bee', 'x/back'), ('cow', 'y/front')],
        r"x/front and y/front would be one class 'front'",
    ),
    'a class in a class': ([('ant', 'bee/ant')], 'images lie in bee and in bee/ant'),
    'different depths': ([('ant', 'x/ant')], 'classes lie at different depths: cow, x/ant'),
    'no class folder': ([('ant/0.png', '0.png')], '1 images lie in no class folder'),
    'none that is read': (
        [(f'ant/{n}.png', f'ant/{n}.heic') for n in range(3)],
        r'class folder ant has no images \(3 \.heic\)',
    ),
}


@pytest.mark.parametrize('case', NOT_MEANT)
def test_folders_that_cannot_be_meant_are_refused(root, case):
    moves, told = NOT_MEANT[case]
    move(root / 'train', *moves)
    with pytest.raises(ValueError, match=f"train, split 'train': {told}"):
        load_dataset('', root)


def test_an_empty_class_is_refused(root):
    (root / 'train' / 'dog').mkdir()
    with pytest.raises(ValueError, match=r'class folder dog has no images \(no files\)'):
        load_dataset('', root)


def test_classes_inside_other_folders_are_told(root):
    move(root / 'train', ('ant', 'small/ant'), ('bee', 'small/bee'), ('cow', 'large/cow'))
    dataset = load_dataset('', root)
    assert class_names(dataset) == list(LEVELS)
    assert '; classes are the innermost folders: ' in summary(dataset)


def test_classes_are_in_timms_order(tmp_path):
    for name in ('10', '9', 'b', 'A'):
        (tmp_path / 'train' / name).mkdir(parents=True)
        Image.new('RGB', (8, 8)).save(tmp_path / 'train' / name / '0.png')
    dataset = load_dataset('', tmp_path)
    theirs = timm.data.create_dataset('', root=str(tmp_path), split='train').reader
    assert class_names(dataset) == sorted(theirs.class_to_idx, key=theirs.class_to_idx.get)
    assert dataset.reader.samples == theirs.samples


@pytest.mark.parametrize('suffix', ['.webp', '.tif', '.TIFF', '.bmp', '.jfif', '.gif', '.pgm'])
def test_whatever_pillow_reads_is_an_image(tmp_path, suffix):
    fill(tmp_path, 'train', suffix='.png')
    fill(tmp_path, 'train', ['bee'], count=4, suffix=suffix)
    assert suffix.lower() in SUFFIXES
    dataset = load_dataset('', tmp_path)
    assert [label for _, label in dataset].count(1) == 7
    for image, label in dataset:
        level = list(LEVELS.values())[label]
        assert np.abs(np.asarray(image).astype(int) - level).max() <= 4


def test_a_tar_is_read_as_a_folder_but_is_not_two_splits(root, tmp_path):
    Image.new('RGB', (8, 8)).save(root / 'train' / 'ant' / '9.webp')
    with tarfile.open(tmp_path / 'data.tar', 'w') as tar:
        tar.add(root / 'train', '.')
    before = timm.data.get_img_extensions()
    dataset = load_dataset('', tmp_path / 'data.tar')
    assert timm.data.get_img_extensions() == before
    assert (len(dataset), class_names(dataset)) == (10, list(LEVELS))
    with pytest.raises(ValueError, match=r'data\.tar is one file, which both splits would read'):
        run(tmp_path / 'data.tar', tmp_path)


def test_a_folder_with_other_classes_than_the_network_is_not_scored(root):
    model = timm.create_model('test_toponet', num_classes=4)
    with pytest.raises(ValueError, match='the data has 3 classes, the network 4'):
        accuracy(model, load_dataset('', root, 'val'))
    model = timm.create_model('test_toponet', num_classes=3)
    model.pretrained_cfg['label_names'] = ['ant', 'bee', 'dog']
    with pytest.raises(ValueError, match='data and network have other classes: cow, dog'):
        accuracy(model, load_dataset('', root, 'val'))


def test_the_split_that_is_trained_on_can_be_evaluated_too(root, tmp_path):
    args = arguments(root, tmp_path, '--val-split', 'train')
    args.remove('--no-aug')
    run_ = built(args)
    crops = [str(loader.dataset.transform) for loader in (run_.loader_train, run_.loader_eval)]
    assert 'RandomResizedCrop' in crops[0]
    assert 'RandomResizedCrop' not in crops[1]


# -- what becomes of a file -----------------------------------------------------------------------


@pytest.mark.parametrize('suffix', ['.png', '.tif', '.pgm'])
@pytest.mark.parametrize('mode', ['L', 'RGB', 'RGBA'])
def test_16_bit_images_keep_their_range(tmp_path, suffix, mode):
    values = (np.arange(256) * 257).astype(np.uint16).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / f'x{suffix}')
    found = np.asarray(read_image(tmp_path / f'x{suffix}', mode)).reshape(16, 16, -1)
    assert np.array_equal(found[..., 0], np.arange(256).reshape(16, 16))


def test_12_bit_images_keep_their_range(tmp_path):
    packed = bytes([0x00, 0x0F, 0xFF, 0x80, 0x00, 0x00])  # 0x000, 0xFFF and 0x800, 0x000
    entries = [(256, 2), (257, 2), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 2),
               (279, 6)]  # fmt: skip
    data = b'II*\0' + (14).to_bytes(4, 'little') + packed + len(entries).to_bytes(2, 'little')
    for tag, value in entries:
        data += b''.join(n.to_bytes(s, 'little') for n, s in ((tag, 2), (3, 2), (1, 4), (value, 4)))
    (tmp_path / 'x.tif').write_bytes(data + bytes(4))
    assert np.asarray(read_image(tmp_path / 'x.tif', 'L')).tolist() == [[0, 255], [128, 0]]


@pytest.mark.parametrize('kind', [np.int32, np.float32])
def test_images_without_a_range_are_not_guessed(tmp_path, kind):
    Image.fromarray(np.full((8, 8), 3, kind)).save(tmp_path / 'x.tif')
    with pytest.raises(ValueError, match=r'TIFF of mode [IF] tells no range of its values'):
        read_image(tmp_path / 'x.tif')


class Level(torch.nn.Module):
    """Right for every image of :func:`fill`, wrong for others."""

    def __init__(self):
        super().__init__()
        self.pretrained_cfg = timm.create_model('test_toponet', num_classes=3).pretrained_cfg
        self.num_classes, self.weight = 3, torch.nn.Parameter(torch.zeros(1))
        self.seen = 0

    def forward(self, x):
        self.seen += len(x)
        mean, std = (torch.tensor(self.pretrained_cfg[key]) for key in ('mean', 'std'))
        levels = 255 * (x.mean((2, 3)) * std + mean).mean(1)
        known = torch.tensor(list(LEVELS.values()))
        assert not len(levels) or (levels[:, None] - known).abs().min() < 2
        return -(levels[:, None] - known).abs()


def test_unreadable_images_are_counted_and_never_scored_as_another(root):
    damage(root / 'val' / 'ant' / '2.png', root / 'val' / 'bee' / '0.png')
    dataset, model = load_dataset('', root, 'val'), Level()
    loader = eval_loader(model, dataset, 4)
    assert [len(target) for _, target in loader] == [4, 4, 1]
    assert sum((target == UNREADABLE).sum() for _, target in loader) == 2
    told = r'not scored: 2 of 9 images cannot be read, .*ant/2\.png: '
    with pytest.warns(UserWarning, match=told):
        assert accuracy(model, dataset, 4) == 100.0
    wrong = torch.nn.Module()
    wrong.forward = lambda x: Level.forward(model, x).roll(1, 1)
    assert evaluate(wrong, loader, CPU)['top1'] == 0.0
    assert sum(map(len, image_batches(model, dataset, 3, 3))) == 7


def test_a_class_that_cannot_be_read_gives_no_accuracy(root):
    damage(*(root / 'val' / 'bee').iterdir())
    with pytest.raises(ValueError, match=r"no image of class 'bee' can be read, .*bee/0\.png: "):
        accuracy(Level(), load_dataset('', root, 'val'))


@pytest.mark.parametrize('workers', [0, 2])
def test_training_counts_the_images_it_replaces(root, tmp_path, capsys, workers):
    damage(root / 'train' / 'ant' / '2.png', root / 'val' / 'cow' / '1.png')
    run(root, tmp_path, '--epochs', 2, '--workers', workers)
    out = capsys.readouterr().out
    assert out.count('train, replaced: 1 of 9 images cannot be read, ') == 1
    assert out.count('validation, not scored: 1 of 9 images cannot be read, ') == 1
    damage(*(root / 'train' / 'bee').iterdir())
    with pytest.raises(ValueError, match="no image of class 'bee' can be read"):
        run(root, tmp_path, '--experiment', 'other', '--workers', workers)


def test_the_next_image_takes_the_place_with_its_own_label(root):
    damage(root / 'train' / 'ant' / '2.png', root / 'train' / 'cow' / '2.png')
    dataset = load_dataset('', root, is_training=True)
    found = [(np.asarray(image)[0, 0, 0], label) for image, label in dataset]
    assert [label for _, label in found] == [0, 0, 1, 1, 1, 1, 2, 2, 0]
    assert all(list(LEVELS.values())[label] == level for level, label in found)
    assert unreadable(dataset).startswith('2 of 9 images cannot be read')


@pytest.mark.parametrize(
    'content',
    [
        b'',
        b'text',
        b'\x89PNG\r\n\x1a\n' + bytes(30),
        b'P6\n-1 1\n255\n',
        b'P5\n9000000 9000000\n255\n ',
    ],
)
def test_damage_of_any_kind_is_counted(root, content):
    (root / 'val' / 'ant' / '0.png').write_bytes(content)
    dataset = load_dataset('', root, 'val')
    assert [label for _, label in dataset] == [UNREADABLE, 0, 0, 1, 1, 1, 2, 2, 2]
    assert unreadable(dataset).startswith('1 of 9 images cannot be read')


def test_tiles_of_an_unreadable_image_are_not_scored_either(root):
    damage(root / 'val' / 'ant' / '0.png')
    dataset = load_dataset('tiles:size=4/', root, 'val')
    assert [label for _, label in dataset] == [UNREADABLE, 0, 0, 1, 1, 1, 2, 2, 2]
    assert unreadable(dataset).startswith('1 of 9 images cannot be read')


# -- image channels -------------------------------------------------------------------------------


@pytest.mark.parametrize('how', ['in_chans', 'model_kwargs', 'input_size'])
@pytest.mark.parametrize('channels', [1, 2, 4])
def test_images_have_the_channels_that_are_asked_for(root, tmp_path, channels, how):
    Image.new('RGBA', (8, 8), (10, 20, 30, 40)).save(root / 'val' / 'ant' / '0.png')
    option = {
        'in_chans': ('--in-chans', channels),
        'model_kwargs': ('--model-kwargs', f'in_chans={channels}'),
        'input_size': ('--input-size', channels, 8, 8),
    }[how]
    args = arguments(root, tmp_path, *option)
    if how == 'input_size':
        args.remove('--img-size=8')
    images = next(iter(built(args).loader_eval.loader))[0]
    grey = [18]  # 0.299 R + 0.587 G + 0.114 B
    expected = {1: grey, 2: [*grey, 40], 4: [10, 20, 30, 40]}[channels]
    assert images[0, :, 0, 0].tolist() == expected
    result = train(parse_args(args))
    model = timm_topo.load(result['model'])
    assert model.pretrained_cfg['input_size'] == (channels, 8, 8)
    dataset = load_dataset('', root, 'val', image_mode(channels))
    assert accuracy(model, dataset) == pytest.approx(result['best_top1'])


@pytest.mark.parametrize('channels', [1, 2, 3, 4])
def test_stored_images_have_them_too(tmp_path, channels):
    raw = tmp_path / 'MNIST' / 'raw'
    raw.mkdir(parents=True)
    for stem in ('train', 't10k'):
        for kind, shape in (('images-idx3', (2, 4, 4)), ('labels-idx1', (2,))):
            head = bytes([0, 0, 8, len(shape)]) + b''.join(n.to_bytes(4, 'big') for n in shape)
            (raw / f'{stem}-{kind}-ubyte').write_bytes(head + bytes(int(np.prod(shape))))
    for name, where in (('torch/mnist', tmp_path), ('digits', None)):
        image, _ = load_dataset(name, where, 'train', image_mode(channels))[0]
        assert len(image.getbands()) == channels


@pytest.mark.parametrize(
    ('options', 'told'),
    [
        (('--in-chans', 5), r'images are read with 1 \(grey\), .* 4 .* channels, not 5'),
        (('--in-chans', 1, '--model-kwargs', 'in_chans=4'), 'options disagree about the channels'),
        (('--in-chans', 4, '--aa', 'rand-m9'), 'rand-m9 is for images with 3 channels'),
    ],
)
def test_channels_that_cannot_be_are_refused(root, tmp_path, options, told):
    with pytest.raises(ValueError, match=told):
        run(root, tmp_path, *options)
