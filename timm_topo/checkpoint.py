"""Save and load networks together with their wiring, in timm's own hub format.

A saved network is a folder with ``model.safetensors`` and ``config.json``. The config names the
architecture and holds every stage's wiring as an explicit edge list, so that a pruned or random
network is rebuilt as it was, and all options of network and rules, those by default too. timm alone
reads it: ``timm.create_model('local-dir:FOLDER', pretrained=True)``; where options were renamed
or dropped since, :func:`load` does.
"""

import argparse
import copy
import json
import math
import re
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError
from timm.data import resolve_data_config
from timm.models import PretrainedCfg, get_model_args, load_state_dict, save_for_hf
from torch import Tensor, nn

from .checks import one_line
from .connectivity import connectivity_name
from .files import replacing_folder
from .models.base import GraphNet
from .schema import check_network, read_bounded
from .stages import graph_stages

__all__ = [
    'FORMAT',
    'FORMAT_KEY',
    'Origin',
    'build_described',
    'check_format',
    'checkpoint_origin',
    'describe',
    'graphs_of',
    'load',
    'migrate',
    'planned',
    'read_checkpoint',
    'save',
    'saved_config',
    'stored_network',
    'training_options',
]


def _with_number(network: dict) -> dict:
    """Format 1 tells its number."""
    return network


def _with_clipped_masks(network: dict) -> dict:
    """Real-valued masks that were clipped only, where they are normalised today."""
    options = network['model_args']
    rules = options.get('connectivity')
    several = isinstance(rules, (list, tuple))
    rules = [
        {'normalised': False, **({'name': rule} if rule == 'mask' else rule)}
        if rule == 'mask' or (isinstance(rule, Mapping) and rule.get('name') == 'mask')
        else rule
        for rule in (rules if several else [rules])
    ]
    if options.get('connectivity') is not None:
        options['connectivity'] = rules if several else rules[0]
    elif 'maskconnect' in str(network['architecture']):
        options.setdefault('normalised', False)
    return network


def _without_ways_to_learn(network: dict) -> dict:
    """Options of masks that changed their learning alone, not what they choose."""
    options = network['model_args']
    rules = options.get('connectivity')
    for given in [options, *(rules if isinstance(rules, (list, tuple)) else [rules])]:
        masks = given is options or (isinstance(given, Mapping) and given.get('name') == 'mask')
        for name in ('centered', 'normalised') if masks else ():
            given.pop(name, None)
    return network


#: ``MIGRATIONS[n]`` turns a description of format n, a dict with ``architecture`` and
#: ``model_args``, into one of format n + 1. A change of an option's name, default or meaning, a
#: rule's too, needs one more step, which writes what was meant before:
#: ``args.setdefault('node', 'sepconv')``. Options of trainings, and networks that were saved before
#: all options were, have those that were given. Steps that are there never change.
MIGRATIONS: tuple[Callable[[dict], dict], ...] = (
    _with_number,
    _with_clipped_masks,
    _without_ways_to_learn,
)

#: What is written today. Older versions of this package refuse it, where it is newer than theirs.
FORMAT = len(MIGRATIONS)
FORMAT_KEY = 'timm_topo_format'


def check_format(number: int, source: str | Path) -> int:
    """The number of a format that can be read; ``source`` is for the error.

    Raises:
        ValueError: It is none, or newer than this version.
    """
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise ValueError(f'{source} has format {number!r}, not a number from 0 on')
    if number > FORMAT:
        raise ValueError(
            f'{source} has format {number}, this version reads up to {FORMAT}: upgrade timm_topo'
        )
    return number


def migrate(network: Mapping, number: int, source: str | Path) -> dict:
    """A description of a network in the format of today.

    Args:
        network: ``architecture``, ``model_args`` and whatever else; left as it is.
        number: Its format; 0 where it has no number.
        source: Where it is from, for the error.

    Raises:
        ValueError: As for :func:`check_format`.
    """
    network = copy.deepcopy(dict(network))
    for step in MIGRATIONS[check_format(number, source) :]:
        network = step(network)
    return network


def describe(model: nn.Module) -> dict:
    """What :func:`build_described` builds the same network from, JSON-ready: no weights.

    Raises:
        TypeError: ``model`` does not come from ``timm.create_model``.
        ValueError: A rule without a name, or an option that is not JSON-ready.
    """
    _check_whole(model)
    options = get_model_args(model, _own_options(model))
    cfg = PretrainedCfg(**model.pretrained_cfg).to_dict(remove_source=True)
    network = {
        'architecture': cfg.pop('architecture'),
        'model_args': options,
        'pretrained_cfg': cfg,
        FORMAT_KEY: FORMAT,
    }
    try:
        return json.loads(json.dumps(network))
    except TypeError as error:
        raise ValueError(
            f'{network["architecture"]} has an option that JSON has not: {error}'
        ) from None


def build_described(network: dict, weights: str | Path | None = None, **kwargs) -> nn.Module:
    """The network of a description in the format of today.

    Args:
        network: As :func:`describe`, :func:`saved_config` and :func:`stored_network` give it.
        weights: The folder of its ``model.safetensors``, which ``pretrained=True`` loads.
        **kwargs: For ``timm.create_model``.
    """
    source = {'file': weights and str(weights), 'source': weights and 'local-dir'}
    overlay = {**source, **(kwargs.pop('pretrained_cfg_overlay', None) or {})}
    with tempfile.TemporaryDirectory() as folder:  # the one stored may be of an older format
        Path(folder, 'config.json').write_text(json.dumps(network), encoding='utf-8')
        return timm.create_model(f'local-dir:{folder}', pretrained_cfg_overlay=overlay, **kwargs)


def _own_options(model: nn.Module) -> dict:
    """What a description needs and timm does not save: graphs, rules, rates of dropping."""
    noted = getattr(model, '_model_args', {})
    rates = {name: value for name, value in noted.items() if re.search(r'drop\w*_rate$', name)}
    if 'drop_rate' in rates or getattr(model, 'drop_rate', 0):
        rates['drop_rate'] = model.drop_rate
    return {**rates, **(model.topology() if hasattr(model, 'topology') else {})}


def _check_whole(model: nn.Module) -> None:
    named = getattr(model, 'pretrained_cfg', {}).get('architecture')
    if not named or not hasattr(model, 'num_classes'):
        raise TypeError(
            f'save needs a whole model from timm.create_model, got {type(model).__name__}'
        )
    if getattr(model, 'deployed', False):
        raise TypeError('a deployed network cannot be rebuilt: save the one it was made of')


def save(
    model: nn.Module,
    folder: str | Path,
    label_names: Sequence[str] | None = None,
    data_config: dict | None = None,
) -> Path:
    """Write ``model`` with its wiring; an existing saved network there is replaced as a whole.

    Args:
        model: A network made by ``timm.create_model`` (or pruned from one).
        folder: Where to; parents are made.
        label_names: Names of the classes, in label order.
        data_config: Preprocessing the weights expect, as from ``timm.data.resolve_data_config``;
            by default the model's own.

    Returns:
        The folder.

    Raises:
        FileExistsError: ``folder`` holds anything but a saved network (a README, say).
        TypeError: ``model`` does not come from ``timm.create_model``.
    """
    folder = Path(folder).resolve()
    _check_whole(model)
    if folder.exists() and not _is_ours(folder):
        raise FileExistsError(f'{folder} exists and holds no saved network; choose another folder')
    with replacing_folder(folder) as new:
        save_for_hf(
            copy.deepcopy(model).to(memory_format=torch.contiguous_format),
            new,
            model_config={
                FORMAT_KEY: FORMAT,
                'label_names': list(label_names) if label_names else None,
            },
            model_args=_own_options(model),
            safe_serialization=True,
            data_config=data_config,
        )
        shutil.copymode(new / 'config.json', new / 'model.safetensors')  # which had 0600
    if lost := _lost(model):
        warnings.warn(f'{folder} does not tell what was replaced by hand: {lost}', stacklevel=2)
    return folder


def _lost(model: nn.Module) -> str:
    """Modules without weights, such as activations, that a loaded network has not."""
    again = planned(partial(build_described, describe(model)), math.inf, 'the saved network')
    own, loaded = _without_weights(model), _without_weights(again)
    names = sorted(n for n in own.keys() | loaded.keys() if own.get(n) != loaded.get(n))
    told = [f'{n} is {own.get(n, "gone")}, not {loaded.get(n, "there")}' for n in names[:3]]
    return '; '.join(told) + (f'; and {len(names) - 3} more' if len(names) > 3 else '')


def _without_weights(model: nn.Module) -> dict[str, str]:
    """Leaves by name, as they print."""
    return {
        name: re.sub(r',? ?inplace=(True|False)', '', repr(module))
        for name, module in model.named_modules()
        if not any(module.children())
        and not module.state_dict()
        and not isinstance(module, nn.Identity)  # where pruning folds constants
    }


def _is_ours(folder: Path) -> bool:
    """Whether a folder is empty or a saved network and nothing more."""
    files = {entry.name for entry in folder.iterdir()}
    if not files:
        return True
    if files != {'config.json', 'model.safetensors'}:
        return False
    try:
        saved_config(folder)
    except ValueError:
        return False
    return True


def saved_config(folder: str | Path) -> dict:
    """The config of a saved network, in the format of today.

    Raises:
        FileNotFoundError: ``folder`` or one of its two files is missing.
        ValueError: The config is no JSON, names no architecture, or is of a newer format.
    """
    folder = Path(folder)
    for name in ('config.json', 'model.safetensors'):
        if not (folder / name).is_file():
            raise FileNotFoundError(f'{folder} is no saved network: {name} is missing')
    try:
        config = json.loads(read_bounded(folder / 'config.json'))
    except (RecursionError, ValueError) as error:
        raise ValueError(f'{folder / "config.json"} is not JSON: {error}') from None
    if not isinstance(config, dict) or not isinstance(config.get('architecture'), str):
        raise ValueError(f'{folder / "config.json"} names no architecture')
    return _todays(config, config.get(FORMAT_KEY, 0), folder)


def _todays(network: Mapping, number: int, source: str | Path) -> dict:
    """A description in the format of today, checked."""
    check_format(number, source)
    try:
        network = migrate(check_network(network), number, source)
        return {**check_network(network), FORMAT_KEY: FORMAT}
    except ValueError as error:
        raise ValueError(f'{source}: {error}') from None


def planned(build: Callable[[], nn.Module], size: float, source: str | Path) -> nn.Module:
    """A network without values, of which none is made that its weights could not fill.

    Args:
        build: Builds it, from what somebody wrote: may raise anything.
        size: Bytes of the file with its weights.
        source: What describes it, for the error.

    Raises:
        ValueError: There is no such network, or it is much larger than the file.
    """
    try:
        with warnings.catch_warnings(), torch.device('meta'):
            warnings.simplefilter('ignore')  # of copying into what has no values
            model = build()
            resolve_data_config({}, model=model)
    except Exception as error:  # whatever constructors make of options nobody meant
        reason = one_line(error) or type(error).__name__
        raise ValueError(f'{source}: {reason}') from None
    needed = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    if needed > 8 * size + 2**26:  # of half precision, compressed
        raise ValueError(
            f'{source}: the weights do not fit the network: they have {size:,} bytes, it {needed:,}'
        )
    return model


def load(folder: str | Path, **kwargs) -> nn.Module:
    """Rebuild a saved network, wiring and weights.

    Args:
        folder: What :func:`save` wrote.
        **kwargs: For ``timm.create_model``: ``num_classes``, ``in_chans``, ``features_only``...
            ``pretrained=False`` gives the same network with fresh weights.

    Raises:
        FileNotFoundError: ``folder`` or one of its two files is missing.
        ValueError: The config cannot be read, or the weights are truncated or of another network.
    """
    folder, config = Path(folder), saved_config(folder)
    if not timm.is_model(config['architecture']):
        raise ValueError(f'{folder} holds a {config["architecture"]!r}, which timm does not know')
    size = (folder / 'model.safetensors').stat().st_size
    planned(partial(build_described, config), size, folder)
    kwargs.setdefault('pretrained', True)
    try:
        return build_described(config, folder, **kwargs)
    except SafetensorError as error:
        raise ValueError(f'{folder}/model.safetensors is truncated or damaged: {error}') from None
    except RuntimeError as error:
        if 'state_dict' not in str(error):
            raise
        reason = one_line(error)
        raise ValueError(f'{folder}: the weights do not fit the network: {reason}') from None
    except ValueError as error:
        raise ValueError(f'{folder}: {error}') from None


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """State dict of a ``.pth``, ``.pth.tar`` or ``.safetensors`` file, averaged weights first.

    Nothing in the file is executed.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is truncated, damaged, or holds more than tensors and plain values.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'checkpoint {path} does not exist')
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if any(entry.compress_type for entry in archive.infolist()):  # a bomb may be
                    raise ValueError('it is compressed, as torch.save does not')
        state = load_state_dict(str(path), use_ema=True, weights_only=True)
        if not all(isinstance(value, Tensor) for value in state.values()):
            raise ValueError('it holds something else than tensors')
    except Exception as error:  # a damaged file makes torch.load raise almost anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        if 'weights_only' in reason:  # whose advice is to run it
            reason = 'it holds Python objects, which are never loaded'
        raise ValueError(
            f'checkpoint {path} is truncated, damaged or not just weights: {reason}'
        ) from None
    return state


@dataclass(frozen=True)
class Origin:
    """Where weights come from, as far as it is stored with them.

    Attributes:
        weights: The file with the weights.
        architecture: Registered name of the network, before it was re-wired if it was.
        graphs: Its stages, as from :func:`graphs_of`; None if there are none, or if the checkpoint
            does not tell.
        mean: Per channel, what was subtracted from images with values from 0 to 1.
        std: What they were divided by then.
    """

    weights: Path
    architecture: str | None = None
    graphs: list[dict] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def checkpoint_origin(path: str | Path) -> Origin:
    """The network of a checkpoint, as far as it tells.

    Args:
        path: The folder of a saved network or the ``model.safetensors`` in one, a checkpoint of
            timm's training (``.pth.tar``), or any other file of weights, which tells nothing.

    Raises:
        FileNotFoundError: There is no such file or folder, or the folder lacks a file.
        ValueError: The folder's config cannot be read.
    """
    path = Path(path)
    beside = path.name == 'model.safetensors' and (path.parent / 'config.json').is_file()
    if path.is_dir() or beside:
        folder = path if path.is_dir() else path.parent
        config = saved_config(folder)
        weights, cfg = folder / 'model.safetensors', config['pretrained_cfg']
        graphs = _graphs_in(config, weights, folder)
        return Origin(weights, config['architecture'], graphs, cfg.get('mean'), cfg.get('std'))
    if not path.is_file():
        raise FileNotFoundError(f'checkpoint {path} does not exist')
    args, network = training_options(path), stored_network(path)
    if network is None:
        name = args.get('model')
        named = isinstance(name, str) and timm.is_model(name)  # ':' stands for anything
        if args.get('from_saved') or not named:
            return Origin(path, None, None, args.get('mean'), args.get('std'))
        network = {'architecture': name.split('.')[0], 'model_args': args.get('model_kwargs')}
        network = _todays(network, 0, path)
    graphs = _graphs_in(network, path, path)
    return Origin(path, network['architecture'], graphs, args.get('mean'), args.get('std'))


def graphs_of(model: nn.Module) -> list[dict] | None:
    """``wiring``, as it is saved, and name of the ``rule`` of each stage; None without stages.

    Weights of one network compute something else in another with the same shapes but other graphs.
    """
    if not isinstance(model, GraphNet):
        return None
    graphs = []
    for stage in graph_stages(model).values():
        rule = connectivity_name(stage.connectivity)
        graphs.append({'wiring': stage.wiring.to_dict(), 'rule': rule})
    return json.loads(json.dumps(graphs))


def _graphs_in(network: dict, weights: Path, source: Path) -> list[dict] | None:
    """Those of a description."""
    return graphs_of(planned(partial(build_described, network), weights.stat().st_size, source))


def training_options(path: Path) -> dict:
    """The command line options that timm's training stored with the weights; none if it did not."""
    args = _stored(path).get('args')
    return vars(args) if isinstance(args, argparse.Namespace) else {}


def stored_network(path: Path) -> dict | None:
    """The description that :class:`timm_topo.task.TopoTask` stored with the weights, if it did.

    Raises:
        ValueError: It is of a newer format, or describes no network.
    """
    state = _stored(path).get('task_state')
    network = state.get('network') if isinstance(state, dict) else None
    if not isinstance(network, dict) or not isinstance(network.get('architecture'), str):
        return None
    return _todays(network, network.get(FORMAT_KEY), path)


def _stored(path: Path) -> dict:
    """What a checkpoint of a training holds, tensors without values; nothing of other files."""
    if path.suffix == '.safetensors':
        return {}
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            stored = torch.load(path, map_location='meta', weights_only=True)
    except Exception:  # read_checkpoint says what is wrong with it
        return {}
    return stored if isinstance(stored, dict) else {}
