"""Save and load networks together with their wiring, in timm's own hub format.

A saved network is a folder with ``model.safetensors`` and ``config.json``. The config names the
architecture and holds every stage's wiring as an explicit edge list, so that a pruned or random
network is rebuilt as it was, and all options of network and rules, those by default too. timm alone
reads it: ``timm.create_model('local-dir:FOLDER', pretrained=True)``; where options were renamed
since, :func:`load` does.
"""

import argparse
import copy
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError
from timm.models import PretrainedCfg, get_model_args, load_state_dict, save_for_hf
from torch import Tensor, nn

from .connectivity import connectivity_name
from .files import replacing_folder
from .models.base import GraphNet
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
    'read_checkpoint',
    'save',
    'saved_config',
    'stored_network',
    'training_options',
]


def _with_number(network: dict) -> dict:
    """Format 1 tells its number."""
    return network


#: ``MIGRATIONS[n]`` turns a description of format n, a dict with ``architecture`` and
#: ``model_args``, into one of format n + 1. A change of an option's name, default or meaning, a
#: rule's too, needs one more step, which writes what was meant before:
#: ``args.setdefault('node', 'sepconv')``. Options of trainings, and networks that were saved before
#: all options were, have those that were given. Steps that are there never change.
MIGRATIONS: tuple[Callable[[dict], dict], ...] = (_with_number,)

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
    options = get_model_args(model, model.topology() if hasattr(model, 'topology') else None)
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


def _check_whole(model: nn.Module) -> None:
    named = getattr(model, 'pretrained_cfg', {}).get('architecture')
    if not named or not hasattr(model, 'num_classes'):
        raise TypeError(
            f'save needs a whole model from timm.create_model, got {type(model).__name__}'
        )


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
            model_args=model.topology() if hasattr(model, 'topology') else None,
            safe_serialization=True,
            data_config=data_config,
        )
        shutil.copymode(new / 'config.json', new / 'model.safetensors')  # which had 0600
    return folder


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
        config = json.loads((folder / 'config.json').read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(f'{folder / "config.json"} is not JSON: {error}') from None
    if not isinstance(config, dict) or not isinstance(config.get('architecture'), str):
        raise ValueError(f'{folder / "config.json"} names no architecture')
    return {**migrate(config, config.get(FORMAT_KEY, 0), folder), FORMAT_KEY: FORMAT}


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
    config = saved_config(folder)
    if not timm.is_model(config['architecture']):
        raise ValueError(f'{folder} holds a {config["architecture"]!r}, which timm does not know')
    kwargs.setdefault('pretrained', True)
    try:
        return build_described(config, folder, **kwargs)
    except SafetensorError as error:
        raise ValueError(f'{folder}/model.safetensors is truncated or damaged: {error}') from None
    except RuntimeError as error:
        if 'state_dict' not in str(error):
            raise
        raise ValueError(f'{folder}: the weights do not fit the network: {error}') from None
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
    """What a checkpoint tells about its network.

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
        cfg = config.get('pretrained_cfg', {})
        return Origin(
            folder / 'model.safetensors',
            config['architecture'],
            _saved_graphs(config.get('model_args') or {}),
            cfg.get('mean'),
            cfg.get('std'),
        )
    if not path.is_file():
        raise FileNotFoundError(f'checkpoint {path} does not exist')
    args, network = training_options(path), stored_network(path)
    if network:
        graphs = _saved_graphs(network['model_args'])
        return Origin(path, network['architecture'], graphs, args.get('mean'), args.get('std'))
    name, kwargs = args.get('model'), args.get('model_kwargs') or {}
    if args.get('from_saved') or not name or not timm.is_model(name):  # ':' stands for anything
        return Origin(path, None, None, args.get('mean'), args.get('std'))
    network = migrate({'architecture': name.split('.')[0], 'model_args': kwargs}, 0, path)
    name, kwargs = network['architecture'], network['model_args']
    with torch.device('meta'):
        graphs = graphs_of(timm.create_model(name, **kwargs))
    return Origin(path, name, graphs, args.get('mean'), args.get('std'))


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


def _saved_graphs(topology: dict) -> list[dict] | None:
    wirings, rules = topology.get('wiring'), topology.get('connectivity')
    if not wirings or not rules:
        return None
    return [{'wiring': w, 'rule': r['name']} for w, r in zip(wirings, rules)]


def training_options(path: Path) -> dict:
    """The command line options that timm's training stored with the weights; none if it did not."""
    args = _stored(path).get('args')
    return vars(args) if isinstance(args, argparse.Namespace) else {}


def stored_network(path: Path) -> dict | None:
    """The description that :class:`timm_topo.task.TopoTask` stored with the weights, if it did.

    Raises:
        ValueError: It is of a newer format.
    """
    state = _stored(path).get('task_state')
    network = state.get('network') if isinstance(state, dict) else None
    return migrate(network, network.get(FORMAT_KEY), path) if isinstance(network, dict) else None


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
