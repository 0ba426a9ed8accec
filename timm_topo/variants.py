"""Easier and harder variants of an image set (Janik & Nowak, section 4): coloured, torn up.

What happens to an image depends on the seed, the split and its number alone, not on the epoch, the
worker or the order of reading: a variant is a data set, not an augmentation.
"""

import inspect
import zlib

import numpy as np
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

from .images import UNREADABLE

__all__ = ['VARIANTS', 'Coloured', 'Converted', 'Tiled', 'Variant', 'make_variant']


class Variant(Dataset):
    """Partial contract: a data set whose images another one holds. Implement ``change``.

    Args:
        dataset: Gives ``(PIL image, label)`` by index. Its own transform must be None.
        mode: PIL mode to convert to.

    Raises:
        ValueError: It can only be read in order.
    """

    def __init__(self, dataset: Dataset, mode: str = 'RGB'):
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, '__getitem__'):
            raise ValueError(
                f'{type(dataset).__name__} can only be read in order; variants of images need '
                'them by number'
            )
        self.dataset = dataset
        self.mode = mode
        self.transform = None  # set by timm's loader

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int):
        image, label = self.dataset[index]
        if label != UNREADABLE:
            image = self.change(image, int(index) % len(self))
        image = image.convert(self.mode)
        return image if self.transform is None else self.transform(image), label

    def change(self, image: Image.Image, index: int) -> Image.Image:
        """The image with number ``index`` in another form."""
        raise NotImplementedError


class Converted(Variant):
    """Images as they are, in another PIL mode."""

    def change(self, image: Image.Image, index: int) -> Image.Image:
        return image


class Coloured(Variant):
    """Grey images at a random place of a black square, in a random colour, with noise.

    The paper's CMNIST, CKMNIST and CFashionMNIST are MNIST, KMNIST and Fashion-MNIST "randomly
    embedded, randomly coloured, with some colour noise"; how much is not printed, the values are
    ours. The colour is uniform in RGB, scaled until its strongest channel is full; the noise is
    Gaussian, independent per pixel and channel, cut off at black and white.

    Args:
        dataset: Gives ``(PIL image, label)``; images that leave no room are shrunk to 7/8 of the
            square, the share that MNIST has.
        mode: PIL mode to convert to.
        salt: Told apart from others with the same seed by this text: the split.
        size: Side of the square in pixels, at least 8.
        noise: Standard deviation of the noise as a share of full brightness, >= 0.
        seed: Of places, colours and noise.

    Raises:
        ValueError: A value out of range, or a data set that can only be read in order.
    """

    def __init__(
        self,
        dataset: Dataset,
        mode: str = 'RGB',
        salt: str = '',
        size: int = 32,
        noise: float = 0.1,
        seed: int = 0,
    ):
        super().__init__(dataset, mode)
        if size < 8:
            raise ValueError(f'size must be at least 8 pixels, got {size}')
        if not 0 <= noise < np.inf:
            raise ValueError(f'noise must be finite and >= 0, got {noise}')
        self.size, self.noise = size, noise
        self.seed = [_seed(seed), zlib.crc32(salt.encode())]

    def change(self, image: Image.Image, index: int) -> Image.Image:
        rng = np.random.default_rng([*self.seed, index])
        room = self.size * 7 // 8
        image = image.convert('L')
        if max(image.size) > room:
            scale = room / max(image.size)
            image = image.resize(
                [max(1, round(side * scale)) for side in image.size], Image.BICUBIC
            )
        grey = np.asarray(image, np.float32) / 255
        height, width = grey.shape
        colour = rng.random(3)
        colour /= colour.max()
        top, left = rng.integers(self.size - height + 1), rng.integers(self.size - width + 1)
        canvas = rng.normal(0, self.noise, (self.size, self.size, 3))
        canvas[top : top + height, left : left + width] += grey[:, :, None] * colour
        return Image.fromarray((canvas.clip(0, 1) * 255).round().astype(np.uint8))


class Tiled(Variant):
    """Images cut into square tiles, shuffled and turned, all in the same way.

    Tiles of 8 on CIFAR-10 are the paper's CIFAR10_T8: harder, as nothing is where it was, and no
    information is lost.

    Args:
        dataset: Gives ``(PIL image, label)``; sides must be multiples of the tile's.
        mode: PIL mode to convert to.
        size: Side of a tile in pixels.
        seed: Of the one permutation and the turns, multiples of 90 degrees.

    Raises:
        ValueError: A value out of range, or a data set that can only be read in order.
    """

    def __init__(self, dataset: Dataset, mode: str = 'RGB', size: int = 8, seed: int = 0):
        super().__init__(dataset, mode)
        if size < 1:
            raise ValueError(f'size must be at least 1 pixel, got {size}')
        self.size, self.seed = size, _seed(seed)

    def change(self, image: Image.Image, index: int) -> Image.Image:
        pixels = np.asarray(image.convert('RGB'))
        if pixels.shape[0] % self.size or pixels.shape[1] % self.size:
            raise ValueError(
                f'image {index} of {image.size} cannot be cut into tiles of {self.size}'
            )
        rows, columns = pixels.shape[0] // self.size, pixels.shape[1] // self.size
        rng = np.random.default_rng(self.seed)
        order, turns = rng.permutation(rows * columns), rng.integers(4, size=rows * columns)
        torn = np.empty_like(pixels)
        for place, (tile, turn) in enumerate(zip(order, turns)):
            torn[self._span(place, columns)] = np.rot90(pixels[self._span(tile, columns)], turn)
        return Image.fromarray(torn)

    def _span(self, place: int, columns: int) -> tuple[slice, slice]:
        row, column = divmod(int(place), columns)
        return (
            slice(row * self.size, (row + 1) * self.size),
            slice(column * self.size, (column + 1) * self.size),
        )


#: What stands before a data set's name: ``colour/idx``, ``tiles:size=8:seed=1/torch/cifar10``.
VARIANTS = {'colour': Coloured, 'tiles': Tiled}


def make_variant(spec: str, dataset: Dataset, mode: str = 'RGB', salt: str = '') -> Variant:
    """A variant of ``dataset`` from its description.

    Args:
        spec: A key of :data:`VARIANTS` and options, ``'colour:noise=0.2:seed=1'``.
        dataset: Gives ``(PIL image, label)`` by index.
        mode: PIL mode to convert to.
        salt: Name of the split.

    Raises:
        ValueError: An unknown variant or option, or a value out of range.
    """
    name, *given = spec.split(':')
    if name not in VARIANTS:
        raise ValueError(f'unknown variant {name!r}; known: {", ".join(VARIANTS)}')
    known = inspect.signature(VARIANTS[name]).parameters
    own = [key for key in known if key not in ('dataset', 'mode', 'salt')]
    options = {'salt': salt} if 'salt' in known else {}
    for option in given:
        key, _, value = option.partition('=')
        if key not in own:
            raise ValueError(f'unknown option {option!r} of {name}; known: {", ".join(own)}')
        try:
            options[key] = type(known[key].default)(value)
        except ValueError:
            kind = type(known[key].default).__name__
            raise ValueError(f'{key} of {name} must be {kind}, got {value!r}') from None
    return VARIANTS[name](dataset, mode, **options)


def _seed(seed: int) -> int:
    if seed < 0:
        raise ValueError(f'seed must not be negative, got {seed}')
    return seed
