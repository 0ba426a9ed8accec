"""Allowed descriptions of a network, by any writer: plain values that one could mean."""

import dataclasses
import math
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from timm.models import PretrainedCfg

__all__ = ['check_network', 'check_plain', 'check_values', 'read_bounded', 'without_sources']

MOST_BYTES = 2**24  # the largest network that is registered needs 2**23
_MOST_DEPTH, _MOST_PLAIN, _MOST_ENTRIES = 16, 2**18, 16  # of what is nested, plain, per stage
_MOST_NODES, _MOST_VALUES = 2**12, 2**24  # of a network, of an image

#: What loads weights from somewhere, or makes something else than a whole network.
_SOURCES = frozenset((
    'pretrained', 'pretrained_cfg', 'pretrained_cfg_overlay', 'pretrained_model_args',
    'checkpoint_path', 'initial_checkpoint', 'cache_dir', 'url', 'file', 'state_dict', 'hf_hub_id',
    'hf_hub_filename', 'source', 'custom_load', 'features_only', 'feature_cls', 'out_indices',
))  # fmt: skip
_OF_WEIGHTS = {field.name for field in dataclasses.fields(PretrainedCfg)} - _SOURCES
_OF_WEIGHTS.add('custom_load')  # once it is off

#: Whole numbers by name: the least and the most.
_WHOLE = {
    **dict.fromkeys(('num_classes', 'label_offset'), (0, 2**20)),
    **dict.fromkeys(('in_chans', 'num_stages', 'num_blocks', 'depths', 'layers'), (1, 2**8)),
    **dict.fromkeys(('cardinality', 'num_nodes'), (1, _MOST_NODES)),
    **dict.fromkeys(('edges', 'node_ids'), (0, _MOST_NODES)),
    **dict.fromkeys(('widths', 'channels', 'features', 'stem_width', 'base_width', 'dims'),
                    (1, 2**16)),
    **dict.fromkeys(('strides', 'stem_stride', 'stem_kernel', 'input_stride', 'output_stride'),
                    (1, 2**6)),
    **dict.fromkeys(('input_size', 'test_input_size', 'min_input_size', 'img_size', 'pool_size',
                     'test_pool_size'), (1, 2**11)),
    **dict.fromkeys(('seed', 'mask_seed'), (-(2**63), 2**63 - 1)),
    'fit_parameters': (1, 2**34),
}  # fmt: skip
_COUNTS = ('num_blocks', 'depths', 'layers', 'num_nodes')
_ANY_WHOLE = (-(2**16), 2**16)
#: Other numbers by name, likewise.
_NUMBERS = {
    'std': (1e-6, 1e6), 'mean': (-1e6, 1e6), 'crop_pct': (1e-2, 1e2), 'test_crop_pct': (1e-2, 1e2),
    'drop': (0, 1),
}  # fmt: skip
_PER_CHANNEL = ('mean', 'std')
_TEXTS = (
    'base', 'interpolation', 'crop_mode', 'first_conv', 'classifier', 'from_saved', 'rewire',
)  # fmt: skip
_FLAT = (*_TEXTS, *_NUMBERS)
_THREE = ('input_size', 'test_input_size', 'min_input_size')


def read_bounded(path: Path, most: int = MOST_BYTES) -> str:
    """The text of a file that describes something.

    Raises:
        ValueError: It is larger than ``most`` bytes, or no text.
    """
    size = path.stat().st_size
    if size > most:
        raise ValueError(f'{path} has {size:,} bytes, a description at most {most:,}')
    return path.read_text(encoding='utf-8')


def check_network(network: Mapping) -> dict:
    """A description of a network, without all that loads weights from elsewhere.

    Args:
        network: ``architecture``, ``model_args``, ``pretrained_cfg`` and whatever else.

    Raises:
        ValueError: What it says cannot be meant: tells the place, what is allowed, what is there.
    """
    network = dict(network)
    for name in ('model_args', 'pretrained_cfg'):
        if network.get(name) is None:
            network[name] = {}
        if not isinstance(network[name], dict):
            raise ValueError(f'{name} must be a mapping, got {reprlib.repr(network[name])}')
    network['model_args'] = without_sources(network['model_args'])
    told = network['pretrained_cfg']
    plain = {**told, 'custom_load': False} if 'custom_load' in told else told
    network['pretrained_cfg'] = {name: plain[name] for name in plain if name in _OF_WEIGHTS}
    check_values(network)
    ids = network['model_args'].get('node_ids')
    nested = ids if isinstance(ids, (list, tuple)) else ()
    last = [one[-1] for one in nested if isinstance(one, (list, tuple)) and one]
    if sum(last) > _MOST_NODES:  # as many are made, whatever pruning left of them
        raise ValueError(f'node_ids must end below {_MOST_NODES} together, got {last}')
    return network


def without_sources(options: Mapping) -> dict:
    """Options of a network, without those that load weights."""
    return {name: value for name, value in options.items() if name not in _SOURCES}


def check_plain(values: Mapping, source: str | Path) -> None:
    """Refuse what is no text, number, list or mapping, is nested in itself or without end.

    Raises:
        ValueError: There is such a value.
    """
    try:
        for count, (place, _, value, _) in enumerate(_walk(values, named=False)):
            if count > _MOST_PLAIN or not isinstance(value, (bool, float, int, str, type(None))):
                raise ValueError(f'{place} is no plain value, or one of too many')
    except ValueError as error:
        raise ValueError(f'{source}: {error}') from None


def check_values(values: Mapping) -> None:
    """Refuse values, by name and anywhere within, that no option of a network has.

    Raises:
        ValueError: As for :func:`check_network`.
    """
    blocks = 0
    for count, (place, name, value, inside) in enumerate(_walk(values)):
        allowed = _allowed(name, value, inside)
        if allowed:
            raise ValueError(f'{place} must be {allowed}, got {reprlib.repr(value)}')
        blocks += value if name in _COUNTS and value else 0
        if blocks > 4 * _MOST_NODES or count > _MOST_PLAIN:
            raise ValueError(f'{place} is more than a network has')


def _walk(
    value, place: str = '', name: str = '', depth: int = 0, named: bool = True
) -> Iterator[tuple[str, str, object, bool]]:
    """Place, name, value and whether it is in a list, for all that is no list or mapping."""
    name = name if named else ''
    if depth > _MOST_DEPTH:
        raise ValueError(f'{place[:80]} is nested more than {_MOST_DEPTH} deep')
    if isinstance(value, dict):
        if name in _FLAT or name in _WHOLE:
            raise ValueError(f'{place} must be no mapping, got {reprlib.repr(value)}')
        for key, one in value.items():
            if not isinstance(key, (str, int)):
                raise ValueError(f'{place} must have names, got {reprlib.repr(key)}')
            yield from _walk(
                one, f'{place}.{key}' if place else str(key), str(key), depth + 1, named
            )
    elif isinstance(value, (list, tuple)):
        if name == 'edges' and all(map(_is_edge, value)):
            return  # a wiring checks the rest, and there are many
        if name in _THREE and (
            [*map(type, value)] != [int] * 3 or math.prod(map(abs, value)) > _MOST_VALUES
        ):
            raise ValueError(
                f'{place} must be three numbers, of at most {_MOST_VALUES:,} values, got '
                f'{reprlib.repr(value)}'
            )
        if name in _WHOLE and name not in ('edges', 'node_ids') and len(value) > _MOST_ENTRIES:
            raise ValueError(f'{place} must have at most {_MOST_ENTRIES} entries, got {len(value)}')
        for i, one in enumerate(value):
            if isinstance(one, (dict, list, tuple)):
                if name in _FLAT:
                    raise ValueError(f'{place} must be flat, got {reprlib.repr(value)}')
                yield from _walk(one, f'{place}[{i}]', name, depth + 1, named)
            else:
                yield f'{place}[{i}]', name, one, True
    else:
        yield place, name, value, False


def _is_edge(value) -> bool:
    return isinstance(value, (list, tuple)) and [*map(type, value)] == [int, int]


def _allowed(name: str, value, inside: bool) -> str:
    """What a value of this name must be, where it is not."""
    if value is None:
        return 'no null' if inside and name in (*_WHOLE, *_NUMBERS) else ''
    if name in _NUMBERS and inside != (name in _PER_CHANNEL):
        return 'numbers in a list' if name in _PER_CHANNEL else 'one number'
    if name in _TEXTS and not isinstance(value, str):
        return 'text'
    if name in _THREE and not inside:
        return 'three numbers'
    whole = isinstance(value, int) and not isinstance(value, bool)
    if name in _WHOLE or (whole and name not in _NUMBERS):
        least, most = _WHOLE.get(name, _ANY_WHOLE)
        if not whole or not least <= value <= most:
            return f'a whole number from {least} to {most}'
    elif name in _NUMBERS:
        least, most = _NUMBERS[name]
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not (least <= value <= most)
        ):
            return f'a number from {least:g} to {most:g}'
    elif isinstance(value, float):
        return '' if math.isfinite(value) else 'finite'
    elif not isinstance(value, (bool, str)):
        return 'a plain value'
    return ''
