"""Images as a detector hands them on -> images as the classifier was trained."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ['FORMATS', 'Pixels', 'channels_of']

#: Channels of the formats of detectron2's ``read_image`` that networks of timm see.
FORMATS = {'RGB': 3, 'BGR': 3, 'L': 1}


def channels_of(input_format: str, pixel_mean: Sequence[float] | None = None) -> int:
    """How many channels images have: one mean each, or those of a known format.

    Raises:
        ValueError: The two disagree, or neither tells.
    """
    known = FORMATS.get(input_format)
    given = known if pixel_mean is None else len(pixel_mean)
    if given is None or (known is None and given in FORMATS.values()):
        raise ValueError(
            f'unknown input_format {input_format!r}; known: {", ".join(FORMATS)}, and any other '
            'name for images of another number of channels, with a pixel_mean for each'
        )
    if known not in (None, given):
        raise ValueError(
            f'pixel_mean {list(pixel_mean)} does not fit images of {known} channels '
            f'(input_format {input_format}, INPUT.FORMAT)'
        )
    return given


class Pixels(nn.Module):
    """Undoes the detector's preprocessing and applies the classifier's; nothing if they agree.

    The classifier's mean and std are saved with the detector. (Where the two differ, the padding
    around an image, zeros, becomes the detector's mean colour.) A classifier of colour images knows
    none for gray or multispectral ones: they stay as the detector hands them on.

    Args:
        mean: What the classifier's training subtracted: per channel (RGB), for values from 0 to 1.
        std: Its divisor then.
        detector_mean: What the detector subtracts: per channel in the order of ``input_format``,
            for values from 0 to 255. By default as the classifier.
        detector_std: Its divisor then.
        input_format: ``'RGB'``, ``'BGR'``, ``'L'``, or any name for other numbers of channels.

    Raises:
        ValueError: An unknown format, or not one value per channel.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        detector_mean: Sequence[float] | None = None,
        detector_std: Sequence[float] | None = None,
        input_format: str = 'RGB',
    ):
        super().__init__()
        self.channels = channels_of(input_format, detector_mean)
        self.flip = input_format == 'BGR'
        for name in ('mean', 'std'):
            self.register_buffer(name, torch.zeros(self.channels))
        for name in ('scale', 'shift'):
            self.register_buffer(name, torch.zeros(self.channels, 1, 1), persistent=False)
        self.detector = {}
        for name, given in (('mean', detector_mean), ('std', detector_std)):
            if given is not None:
                given = self._checked(f'pixel_{name}', given)
                given = given.flip(0) if self.flip else given  # RGB from here on
            self.detector[name] = given
        if self.channels != FORMATS['RGB']:  # until weights of such a classifier are loaded
            for name, buffer in (('mean', self.mean), ('std', self.std)):
                default = {'mean': mean, 'std': std}[name]
                own = self.detector[name]
                buffer.copy_(
                    torch.tensor(sum(default) / len(default)) if own is None else own / 255
                )
        self.set(mean, std)

    def complete(
        self, mean: Sequence[float] | None, std: Sequence[float] | None
    ) -> tuple[Sequence[float], Sequence[float]]:
        """What is not given as it is now, and one value for all channels, as timm has it.

        Raises:
            ValueError: Not one value per channel.
        """
        given = {'mean': mean, 'std': std}
        full = []
        for name, values in given.items():
            if values is not None and len(values) == FORMATS['RGB'] != self.channels:
                values = None  # of colour images, which these are not
            values = getattr(self, name).tolist() if values is None else values
            values = list(values) * (self.channels if len(values) == 1 else 1)
            full.append(self._checked(f"the classifier's {name}", values))
        return full[0], full[1]

    def _checked(self, name: str, values: Sequence[float]) -> Tensor:
        if len(values) != self.channels:
            raise ValueError(
                f'{name} {list(values)} does not fit images of {self.channels} channels '
                '(pretrained_cfg_overlay changes the mean and std of a network of timm)'
            )
        return torch.tensor([float(v) for v in values])

    @torch.no_grad()
    def set(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """New preprocessing of the classifier, as for the constructor."""
        for name, values in zip(('mean', 'std'), self.complete(mean, std)):
            getattr(self, name).copy_(values)
        self._update()

    @torch.no_grad()
    def _update(self) -> None:
        self.same = False
        if self.mean.is_meta:  # values come later
            return
        mean, std = 255 * self.mean, 255 * self.std
        theirs = {
            name: own if self.detector[name] is None else self.detector[name].to(own)
            for name, own in (('mean', mean), ('std', std))
        }
        self.scale.copy_((theirs['std'] / std)[:, None, None])
        self.shift.copy_(((theirs['mean'] - mean) / std)[:, None, None])
        self.same = torch.allclose(theirs['mean'], mean, atol=1e-3, rtol=0) and torch.allclose(
            theirs['std'], std, atol=1e-3, rtol=0
        )  # configs give three decimals

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> ``(B, C, H, W)``."""
        if self.flip:
            x = x.flip(1)
        return x if self.same else x * self.scale + self.shift

    def _load_from_state_dict(self, *args) -> None:
        super()._load_from_state_dict(*args)
        self._update()
