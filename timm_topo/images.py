"""Image files: contents of a folder of class folders, and the way from a file to an image."""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timm.utils import natural_key
from torch.utils.data import Dataset

__all__ = ['MODES', 'SUFFIXES', 'UNREADABLE', 'FolderContents', 'ImageFiles', 'contents',
           'image_mode', 'read_image']  # fmt: skip

#: PIL modes by number of channels.
MODES = {1: 'L', 2: 'LA', 3: 'RGB', 4: 'RGBA'}
#: Label of an image that cannot be read: what cross-entropy leaves out.
UNREADABLE = -100

_FORMATS = ('AVIF', 'BMP', 'GIF', 'JPEG', 'JPEG2000', 'PNG', 'PPM', 'TIFF', 'WEBP')
Image.init()
#: Suffixes under which Pillow reads images.
SUFFIXES = tuple(
    suffix
    for suffix, name in sorted(Image.registered_extensions().items())
    if name in _FORMATS and name in Image.OPEN
)
#: What Pillow raises on damaged files.
_DAMAGE = (OSError, EOFError, RuntimeError, SyntaxError, ValueError, Image.DecompressionBombError)
_COPIES = ('__MACOSX', '@eaDir')  # folders of archives and of disk stations, not of people


def image_mode(channels: int) -> str:
    """PIL mode of images with so many channels.

    Raises:
        ValueError: Images have 1 to 4.
    """
    if channels not in MODES:
        raise ValueError(
            f'images are read with 1 (grey), 2 (grey and alpha), 3 (colour) or 4 (colour and '
            f'alpha) channels, not {channels}'
        )
    return MODES[channels]


def read_image(file, mode: str = 'RGB') -> Image.Image:
    """An image with 8 bits per channel: of more bits, the highest.

    Pillow's own conversion cuts off what is over 255: 16-bit images get white.

    Args:
        file: Path or file object.
        mode: PIL mode to convert to.

    Raises:
        ValueError: Values have no range: 32-bit integers and floats.
        OSError: No image, or a damaged one; damaged ones raise some other errors too.
    """
    image = Image.open(file)
    if image.mode.startswith('I;16') or (image.mode == 'I' and image.format in ('PNG', 'PPM')):
        bits = image.tag_v2.get(258, (16,))[0] if image.format == 'TIFF' else 16
        image = Image.fromarray((np.asarray(image) >> (bits - 8)).astype(np.uint8))
    elif image.mode in ('I', 'F'):
        raise ValueError(f'{image.format} of mode {image.mode} tells no range of its values')
    return image.convert(mode)


class ImageFiles(Dataset):
    """Images of a timm reader. Those that cannot be read are counted, by all workers of a loader.

    In training the next image takes its place, with its own label. Otherwise it is black and its
    label is :data:`UNREADABLE`.

    Args:
        reader: timm reader of files and labels by number.
        mode: PIL mode to convert to.
        training: Whether others take the place of unreadable images.
        found: Contents, of a folder.

    Attributes:
        unreadable: Which images could not be read so far, bool ``(N,)``, in shared memory.
    """

    def __init__(
        self, reader, mode: str, training: bool = False, found: 'FolderContents | None' = None
    ):
        self.reader = reader
        self.mode = mode
        self.training = training
        self.found = found
        self.transform = None  # set by timm's loader
        self.unreadable = torch.zeros(len(reader), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int):
        image, label = self._read(range(len(self))[index])
        return image if self.transform is None else self.transform(image), label

    def _read(self, index: int):
        for turn in range(len(self) if self.training else 1):
            number = (index + turn) % len(self)
            try:
                file, label, *_ = self.reader[number]
                return read_image(file, self.mode), label
            except _DAMAGE:
                self.unreadable[number] = True
        if self.training:
            raise ValueError(f'none of {len(self)} images can be read, {self.reason(index)}')
        return Image.new(self.mode, (1, 1)), UNREADABLE

    @property
    def labels(self) -> np.ndarray | None:
        """Class indices ``(N,)``; None where the reader does not tell without reading."""
        if hasattr(self.reader, 'targets'):
            return np.asarray(self.reader.targets)
        samples = getattr(self.reader, 'samples', None)
        return None if samples is None else np.array([label for _, label in samples])

    def reason(self, index: int) -> str:
        """Name of a file that cannot be read, and why."""
        path = self.reader.filename(index, absolute=True)
        if not os.path.isfile(path):  # inside an archive
            return str(path)
        try:
            read_image(path, self.mode)
        except _DAMAGE as error:
            return f'{path}: {error}'
        return f'{path}: now it can'


@dataclass
class FolderContents:
    """Contents of a folder of class folders.

    Attributes:
        images: Number of images by folder, relative.
        skipped: Number of other files by suffix, and of files in hidden folders.
    """

    images: Counter = field(default_factory=Counter)
    skipped: Counter = field(default_factory=Counter)

    @property
    def classes(self) -> list[str]:
        """Names of the innermost folders, in timm's order."""
        return sorted({folder.name for folder in self.images}, key=natural_key)

    def listed(self) -> str:
        """Skipped files by suffix, as text."""
        return _listed(self.skipped)

    @property
    def nested(self) -> Path | None:
        """A class folder inside another folder, if there is one."""
        return next((folder for folder in self.images if len(folder.parts) > 1), None)


def hidden(path: Path) -> bool:
    """Whether a relative path is one of those that tools leave: ``.ipynb_checkpoints``, say."""
    return any(part.startswith('.') or part in _COPIES for part in path.parts)


def contents(root: Path) -> FolderContents:
    """What ``root`` holds, without reading any image.

    Raises:
        ValueError: It cannot be meant as a folder of class folders: no images, images outside
            class folders, a class without images, class folders inside others, or several of
            the same name.
    """
    found, empty = FolderContents(), {}
    for name, folders, files in os.walk(root, followlinks=True):
        folder = Path(name).relative_to(root)
        within, others = hidden(folder), Counter()
        for file in files:
            suffix = os.path.splitext(file)[1].lower()
            if within or hidden(Path(file)):
                found.skipped['hidden'] += 1
            elif suffix in SUFFIXES:
                found.images[folder] += 1
            else:
                others[suffix or file] += 1
        found.skipped += others
        inner = any(not hidden(Path(one)) for one in folders)
        if not inner and not within and folder not in found.images:
            empty[folder] = others
    if not found.images:
        raise ValueError(f'no images: {_listed(found.skipped) or "no files at all"}')
    _check_meant(found.images, empty)
    return found


def _check_meant(images: Counter, empty: dict[Path, Counter]) -> None:
    """Raise where class folders cannot be meant so."""
    if outside := images.get(Path()):
        raise ValueError(f'{outside} images lie in no class folder')
    for folder, others in sorted(empty.items()):
        raise ValueError(f'class folder {folder} has no images ({_listed(others) or "no files"})')
    by_name, by_depth = {}, {}
    for folder in sorted(images):
        if outer := next((one for one in folder.parents if one in images), None):
            raise ValueError(f'images lie in {outer} and in {folder}: which is the class?')
        if (other := by_name.setdefault(folder.name, folder)) != folder:
            raise ValueError(
                f'{other} and {folder} would be one class {folder.name!r}: classes are called as '
                'the innermost folders'
            )
        by_depth[len(folder.parts)] = folder
    if len(by_depth) > 1:
        raise ValueError(
            f'classes lie at different depths: {", ".join(map(str, by_depth.values()))}'
        )


def _listed(files: Counter) -> str:
    return ', '.join(f'{count} {suffix}' for suffix, count in files.most_common())
