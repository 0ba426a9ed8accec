"""Weights to start from: those of the same network for other classes or other image channels."""

from collections.abc import Mapping
from pathlib import Path

import timm
from timm.models import adapt_input_conv
from torch import Tensor, nn

from ..analysis.cost import input_size_of
from ..checkpoint import read_checkpoint
from ..checks import one_line

__all__ = ['load_weights', 'pretrained_weights']


def load_weights(
    model: nn.Module, state: Mapping[str, Tensor], source: str | Path, classifier: bool = True
) -> list[str]:
    """Load weights of the same network, the classifier and the first convolutions where they fit.

    A classifier of other classes is left as it is. First convolutions for other image channels are
    adapted as timm adapts pretrained ones.

    Args:
        model: A timm model.
        state: Its state dict, but for classes and image channels.
        source: Where the weights are from.
        classifier: Whether to load that of as many classes.

    Returns:
        Tensors left out or adapted, as text.

    Raises:
        ValueError: The weights are of another network.
    """
    state, own, told = dict(state), model.state_dict(), []
    for name in _names(model, 'classifier'):
        weight = f'{name}.weight'
        if weight not in own or (weight in state and not _fits(state[weight], own[weight], 0)):
            continue
        there, here = len(state.get(weight, ())), len(own[weight])
        if there == here and classifier:
            continue
        state |= {key: own[key] for key in (weight, f'{name}.bias') if key in own}
        told.append(f'{name} starts anew: {there or "no"} classes in {source}, {here} here')
    for name, there in _image_channels(model, state).items():
        weight, here = f'{name}.weight', input_size_of(model)[0]
        if there == here or not _fits(state[weight], own[weight], 1):
            continue
        try:
            state[weight], how = adapt_input_conv(here, state[weight], there), 'is adapted'
        except NotImplementedError:  # timm, too, lets it start anew
            state[weight], how = own[weight], 'starts anew'
        told.append(f'{name} {how}: {there} image channels in {source}, {here} here')
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise _misfit(source, error) from None
    return told


def pretrained_weights(
    model: nn.Module, name: str, path: str | Path, options: Mapping
) -> dict[str, Tensor]:
    """State dict of a file as timm reads pretrained weights: other people's names are translated.

    Args:
        model: A timm model, for other classes and image channels than the file's, perhaps.
        name: Its name, as ``timm.create_model`` takes it.
        path: The file.
        options: Those of the model.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, holds more than weights, or is of another network.
    """
    state, cfg = read_checkpoint(path), model.pretrained_cfg
    weights = [state.get(f'{one}.weight') for one in _names(model, 'classifier')]
    classes = next((len(weight) for weight in weights if weight is not None), cfg['num_classes'])
    channels = next(iter(_image_channels(model, state).values()), cfg['input_size'][0])
    overlay = dict(
        options.get('pretrained_cfg_overlay') or {},
        file=str(path),
        num_classes=classes,
        input_size=(channels, *cfg['input_size'][1:]),
    )
    own = dict(pretrained_cfg_overlay=overlay, num_classes=classes, in_chans=channels)
    try:
        return timm.create_model(name, pretrained=True, **{**options, **own}).state_dict()
    except RuntimeError as error:
        raise _misfit(path, error) from None


def _misfit(source: str | Path, error: Exception) -> ValueError:
    return ValueError(f'{source} is of another model: {one_line(error)}')


def _image_channels(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, int]:
    """Image channels that weights of the first convolutions are for, by name."""
    channels = {}
    for name in _names(model, 'first_conv'):
        weight, module = state.get(f'{name}.weight'), model.get_submodule(name)
        if weight is not None and weight.ndim == 4:
            # one per image channel; more where space goes to depth
            inputs = module.in_channels // input_size_of(model)[0] or 1
            channels[name] = weight.shape[1] * module.groups // inputs
    return channels


def _names(model: nn.Module, key: str) -> tuple[str, ...]:
    """Modules that timm's config of a model names."""
    names = model.pretrained_cfg.get(key) or ()
    return (names,) if isinstance(names, str) else tuple(names)


def _fits(there: Tensor, here: Tensor, dim: int) -> bool:
    """Whether two shapes are alike but for a dimension."""
    shapes = [list(tensor.shape) for tensor in (there, here)]
    return len(shapes[0]) == len(shapes[1]) and all(
        one == other for at, (one, other) in enumerate(zip(*shapes)) if at != dim
    )
