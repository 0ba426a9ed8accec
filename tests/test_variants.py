"""Coloured and torn-up images: what is done, the same every time, and nothing else."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_loader
from torch.utils.data import Dataset, IterableDataset

from timm_topo.data import ALIASES, ArrayDataset, Portion, class_names, load_dataset
from timm_topo.variants import VARIANTS, Coloured, Tiled, make_variant


def scans(count: int = 6, height: int = 28, width: int = 28, seed: int = 0) -> ArrayDataset:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, height, width), dtype=np.uint8)
    return ArrayDataset(images, np.arange(count) % 3, ['a', 'b', 'c'])


def pixels(dataset: Dataset, index: int = 0) -> np.ndarray:
    return np.asarray(dataset[index][0]).astype(int)


# -- coloured -------------------------------------------------------------------------------------


@given(height=st.integers(1, 28), width=st.integers(1, 28), seed=st.integers(0, 99))
def test_without_noise_the_image_is_there_in_one_colour_and_all_else_is_black(height, width, seed):
    base = scans(3, height, width, seed)
    for index in range(3):
        grey = pixels(base, index)[:, :, 0]
        got = pixels(Coloured(base, noise=0, seed=seed), index)
        assert got.shape == (32, 32, 3)
        found = []
        for top in range(33 - height):
            for left in range(33 - width):
                outside = got.copy()
                outside[top : top + height, left : left + width] = 0
                if outside.any():
                    continue
                part = got[top : top + height, left : left + width]
                strongest = part.max(2)
                found.append(np.abs(strongest - grey).max() <= 1)  # one channel is full
                if not found[-1] or grey.max() == 0:
                    continue
                colour = part.reshape(-1, 3)[grey.argmax()] / grey.max()
                assert np.abs(part - grey[:, :, None] * colour).max() <= 2.5
        assert any(found)


def test_noise_has_its_strength_and_no_pattern():
    dark = ArrayDataset(np.zeros((1, 4, 4), np.uint8), np.zeros(1, int), ['a'])
    bright = pixels(Coloured(dark, noise=0.1, size=256))
    noise = bright[bright > 0] / 255  # the negative half is cut off at black
    assert np.mean(bright > 0) == pytest.approx(0.5, abs=0.01)
    assert np.sqrt(np.mean(noise**2)) == pytest.approx(0.1, rel=0.03)
    channels = bright.reshape(-1, 3).T
    assert np.abs(np.corrcoef(channels) - np.eye(3)).max() < 0.03


def test_places_and_colours_are_spread_over_what_is_possible():
    white = ArrayDataset(np.full((300, 28, 28), 255, np.uint8), np.zeros(300, int), ['a'])
    corners, colours = set(), []
    for index in range(300):
        got = pixels(Coloured(white, noise=0), index)
        top, left = np.argwhere(got.max(2) > 0).min(0)
        corners.add((int(top), int(left)))
        colours.append(got[top, left] / 255)
    assert corners == {(top, left) for top in range(5) for left in range(5)}
    colours = np.array(colours)
    assert np.allclose(colours.max(1), 1)
    assert (colours.min(0) < 0.05).all()


@pytest.mark.parametrize(('height', 'width'), [(32, 32), (64, 40), (29, 5), (400, 1)])
def test_large_images_are_shrunk_to_the_share_of_mnist(height, width):
    white = ArrayDataset(np.full((1, height, width), 255, np.uint8), np.zeros(1, int), ['a'])
    rows, columns = np.nonzero(pixels(Coloured(white, noise=0)).max(2))
    sides = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert max(sides) == 28
    assert min(sides) == max(1, round(min(height, width) * 28 / max(height, width)))


# -- torn up --------------------------------------------------------------------------------------


@given(
    rows=st.integers(1, 4), columns=st.integers(1, 4), size=st.integers(1, 6),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_tiles_are_all_there_turned_and_elsewhere(rows, columns, size, seed):
    """Every place holds one tile in one of four turns, the same for all images."""
    base = scans(4, rows * size, columns * size, seed)
    torn = Tiled(base, size=size, seed=seed)
    rng = np.random.default_rng(seed)
    order, turns = rng.permutation(rows * columns), rng.integers(4, size=rows * columns)
    assert sorted(order) == list(range(rows * columns))
    for index in range(4):
        old, new = pixels(base, index), pixels(torn, index)
        for place, (tile, turn) in enumerate(zip(order, turns)):
            r, c = size * (tile // columns), size * (tile % columns)
            expected = old[r : r + size, c : c + size]
            for _ in range(turn):
                expected = expected[:, ::-1].transpose(1, 0, 2)  # a quarter, anticlockwise
            r, c = size * (place // columns), size * (place % columns)
            assert np.array_equal(new[r : r + size, c : c + size], expected)


def test_sixteen_tiles_of_a_cifar_image_move_and_turn():
    """The seed that everyone gets by default does tear images up."""
    rng = np.random.default_rng(0)
    order, turns = rng.permutation(16), rng.integers(4, size=16)
    assert (order != np.arange(16)).sum() > 12
    assert set(turns) == {0, 1, 2, 3}


def test_an_image_that_has_no_whole_tiles_is_named():
    torn = Tiled(scans(height=28, width=30))
    with pytest.raises(ValueError, match=r'image 2 of \(30, 28\) cannot be cut into tiles of 8'):
        torn[2]


# -- the same every time --------------------------------------------------------------------------


@pytest.mark.parametrize('kind', sorted(VARIANTS))
def test_the_seed_decides_and_the_order_of_reading_does_not(kind):
    base = scans(height=24, width=24)
    first, second = (make_variant(f'{kind}:seed=3', base) for _ in range(2))
    forwards = [pixels(first, i) for i in range(6)]
    backwards = [pixels(second, i) for i in reversed(range(6))][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(forwards, backwards))
    assert np.array_equal(pixels(first, -1), forwards[-1])
    assert len(first) == 6
    other = make_variant(f'{kind}:seed=4', base)
    assert not all(np.array_equal(a, pixels(other, i)) for i, a in enumerate(forwards))


def test_splits_and_images_have_noise_of_their_own():
    base = scans(2)
    base.images[1] = base.images[0]
    train, validation = (Coloured(base, salt=salt) for salt in ('train', 'validation'))
    assert not np.array_equal(pixels(train, 0), pixels(train, 1))
    assert not np.array_equal(pixels(train, 0), pixels(validation, 0))


def test_workers_and_epochs_read_the_same_images():
    def read(workers: int) -> list[torch.Tensor]:
        dataset = load_dataset('colour/digits', split='validation')
        loader = create_loader(
            dataset, input_size=(3, 32, 32), batch_size=64, num_workers=workers,
            use_prefetcher=False, crop_pct=1.0, persistent_workers=False,
        )  # fmt: skip
        return [torch.cat([images for images, _ in loader]) for _ in range(2)]

    epochs = [*read(0), *read(2)]
    assert all(torch.equal(epoch, epochs[0]) for epoch in epochs)


# -- by name --------------------------------------------------------------------------------------


def test_names_nest_and_keep_classes_and_labels():
    plain = load_dataset('digits')
    for name in ('colour/digits', 'tiles/digits', 'tiles:size=16/colour:noise=0/digits'):
        variant = load_dataset(name)
        assert len(variant) == len(plain)
        assert class_names(variant) == class_names(plain)
        assert [variant[i][1] for i in range(20)] == [plain[i][1] for i in range(20)]
    outer = load_dataset('tiles:size=16:seed=5/colour:noise=0:size=48/digits')
    assert (outer.size, outer.seed, outer.dataset.noise, outer.dataset.size) == (16, 5, 0, 48)
    assert pixels(outer).shape == (48, 48, 3)


def test_synonyms_of_a_split_are_one_split():
    assert np.array_equal(
        *(pixels(load_dataset('colour/digits', split=s)) for s in ('val', 'validation'))
    )


def test_grey_networks_get_grey_images():
    assert load_dataset('colour/digits', mode='L')[0][0].mode == 'L'
    assert load_dataset('tiles/digits', mode='L')[0][0].mode == 'L'


def test_folders_have_variants_too(tmp_path):
    for split in ('train', 'validation'):
        for name in ('ant', 'bee'):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            Image.new('RGBA', (40, 20), (255, 0, 0, 255)).save(folder / 'a.png')
    dataset = load_dataset('colour/', tmp_path, 'validation')
    assert class_names(dataset) == ['ant', 'bee']
    image, label = dataset[1]
    assert (image.mode, image.size, label) == ('RGB', (32, 32), 1)


@pytest.mark.parametrize('name', ['cmnist', 'ckmnist', 'cfashionmnist', 'cifar10', 'cifar10_t8'])
def test_the_papers_sets_ask_for_their_files(name, tmp_path):
    assert set(ALIASES) == {'cmnist', 'ckmnist', 'cfashionmnist', 'cifar10', 'cifar10_t8'}
    with pytest.raises(ValueError, match='not found'):
        load_dataset(name, tmp_path)


def test_cmnist_is_coloured_mnist(tmp_path):
    """torchvision's own folders, with two images in them."""
    raw = tmp_path / 'MNIST' / 'raw'
    raw.mkdir(parents=True)
    images = np.arange(2 * 28 * 28, dtype=np.uint8).reshape(2, 28, 28)
    for stem in ('train', 't10k'):
        head = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 28, 0, 0, 0, 28])
        (raw / f'{stem}-images-idx3-ubyte').write_bytes(head + images.tobytes())
        (raw / f'{stem}-labels-idx1-ubyte').write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 1]))
    dataset = load_dataset('cmnist', tmp_path, 'train')
    assert len(class_names(dataset)) == 10
    assert dataset[0][1] == 7
    base = ArrayDataset(images, np.array([7, 1]), [str(i) for i in range(10)])
    assert np.array_equal(pixels(dataset, 1), pixels(Coloured(base, salt='train'), 1))


# -- portions -------------------------------------------------------------------------------------


def test_a_portion_is_a_fixed_random_choice():
    base = scans(50)
    part = Portion(base, 20)
    assert len(part) == 20
    assert part.chosen == Portion(scans(50), 20).chosen
    assert len(set(part.chosen)) == 20
    assert part.chosen != sorted(part.chosen)
    assert np.array_equal(pixels(part, 3), pixels(base, part.chosen[3]))
    part.transform = np.shape
    assert base.transform is np.shape
    assert part.transform is np.shape
    assert part[0][0] == (28, 28, 3)


# -- bad input ------------------------------------------------------------------------------------


class Stream(IterableDataset):
    def __iter__(self):
        yield Image.new('L', (8, 8)), 0


@pytest.mark.parametrize(
    ('make', 'told'),
    [
        (lambda: load_dataset('color/digits'), 'unknown data set .*colour/ or tiles/ before'),
        (lambda: make_variant('blur', scans()), "unknown variant 'blur'; known: colour, tiles"),
        (lambda: load_dataset('colour:hue=1/digits'), "unknown option 'hue=1' of colour; known"),
        (lambda: load_dataset('colour:salt=1/digits'), "unknown option 'salt=1'"),
        (lambda: load_dataset('colour:noise/digits'), "noise of colour must be float, got ''"),
        (lambda: load_dataset('tiles:size=big/digits'), "size of tiles must be int, got 'big'"),
        (lambda: load_dataset('tiles:size=0/digits'), 'at least 1 pixel, got 0'),
        (lambda: load_dataset('tiles:seed=-1/digits'), 'seed must not be negative, got -1'),
        (lambda: load_dataset('colour:size=4/digits'), 'at least 8 pixels, got 4'),
        (lambda: load_dataset('colour:noise=-1/digits'), 'finite and >= 0, got -1'),
        (lambda: load_dataset('colour:noise=nan/digits'), 'finite and >= 0, got nan'),
        (lambda: Coloured(Stream()), 'Stream can only be read in order'),
        (lambda: Portion(Stream(), 1), 'Stream can only be read in order'),
        (lambda: Portion(scans(6), 7), '7 images asked for, the data set has 6'),
    ],
)
def test_what_cannot_be_is_named(make, told):
    with pytest.raises(ValueError, match=told):
        make()
