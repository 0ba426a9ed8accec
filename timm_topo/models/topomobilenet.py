"""MobileNetV2, deepened k times, and as complete graphs (TopoNet, section 4.1, Table 2).

``mobilenetv2_{k}n`` repeats the blocks of MobileNetV2-1.0 k times per stage; plain 1N is timm's
``mobilenetv2_100``. ``topomobilenetv2_...`` are the same blocks in complete graphs with learned
edge weights; every stage has the paper's input projection, whose BN scale starts at zero (ours), so
that untrained they compute what the plain network does.
"""

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.efficientnet import EfficientNet, decode_arch_def
from torch import nn

from .base import imagenet_cfg
from .rewired import create_rewired

__all__ = []

#: Type, repeats, kernel, stride, expansion and width of the stages.
_LAYOUT = (
    ('ds', 1, 3, 1, 1, 16),
    ('ir', 2, 3, 2, 6, 24),
    ('ir', 3, 3, 2, 6, 32),
    ('ir', 4, 3, 2, 6, 64),
    ('ir', 3, 3, 1, 6, 96),
    ('ir', 3, 3, 2, 6, 160),
    ('ir', 1, 3, 1, 6, 320),
)


_CFG = imagenet_cfg(first_conv='conv_stem', classifier='classifier')

default_cfgs = generate_default_cfgs(
    {
        **{f'mobilenetv2_{k}n.untrained': _CFG for k in (2, 4, 6)},
        **{f'topomobilenetv2_{k}.untrained': _CFG for k in ('100', '2n', '4n', '6n')},
    }
)


def _mobilenetv2(k: int, pretrained: bool, kwargs: dict) -> EfficientNet:
    """Stages k times as deep; the last, of 320 channels, at most twice (the printed counts)."""
    repeats = [k * stage[1] for stage in _LAYOUT[:-1]] + [min(k, 2)]
    arch = [
        [f'{kind}_r{repeat}_k{kernel}_s{stride}_e{expansion}_c{width}']
        for (kind, _, kernel, stride, expansion, width), repeat in zip(_LAYOUT, repeats)
    ]
    kwargs.setdefault('act_layer', nn.ReLU6)
    return build_model_with_cfg(
        EfficientNet,
        f'mobilenetv2_{k}n',
        pretrained,
        block_args=decode_arch_def(arch),
        num_features=1280,
        feature_cfg=dict(feature_cls='getter'),
        **kwargs,
    )


@register_model
def mobilenetv2_2n(pretrained: bool = False, **kwargs) -> EfficientNet:
    """MobileNetV2-1.0 with twice the blocks."""
    return _mobilenetv2(2, pretrained, kwargs)


@register_model
def mobilenetv2_4n(pretrained: bool = False, **kwargs) -> EfficientNet:
    """MobileNetV2-1.0 with four times the blocks."""
    return _mobilenetv2(4, pretrained, kwargs)


@register_model
def mobilenetv2_6n(pretrained: bool = False, **kwargs) -> EfficientNet:
    """MobileNetV2-1.0 with six times the blocks."""
    return _mobilenetv2(6, pretrained, kwargs)


def _topomobilenetv2(name: str, base: str, pretrained: bool, kwargs: dict) -> nn.Module:
    defaults = dict(base=base, projection=True, sparsity='adaptive')
    return create_rewired(name, pretrained, defaults, kwargs)


@register_model
def topomobilenetv2_100(pretrained: bool = False, **kwargs) -> nn.Module:
    """MobileNetV2-1.0 as complete graphs."""
    return _topomobilenetv2('topomobilenetv2_100', 'mobilenetv2_100', pretrained, kwargs)


@register_model
def topomobilenetv2_2n(pretrained: bool = False, **kwargs) -> nn.Module:
    """MobileNetV2-1.0 2N as complete graphs."""
    return _topomobilenetv2('topomobilenetv2_2n', 'mobilenetv2_2n', pretrained, kwargs)


@register_model
def topomobilenetv2_4n(pretrained: bool = False, **kwargs) -> nn.Module:
    """MobileNetV2-1.0 4N as complete graphs."""
    return _topomobilenetv2('topomobilenetv2_4n', 'mobilenetv2_4n', pretrained, kwargs)


@register_model
def topomobilenetv2_6n(pretrained: bool = False, **kwargs) -> nn.Module:
    """MobileNetV2-1.0 6N as complete graphs."""
    return _topomobilenetv2('topomobilenetv2_6n', 'mobilenetv2_6n', pretrained, kwargs)
