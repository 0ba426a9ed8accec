"""Save and load networks together with their wiring, in timm's own hub format.

A saved network is a folder with ``model.safetensors`` and ``config.json``. The config names the
architecture and holds every stage's wiring as an explicit edge list, so that a pruned or random
network is rebuilt as it was. timm alone reads it: ``timm.create_model('local-dir:FOLDER',
pretrained=True)``.
"""

import argparse
import copy
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError
from timm.models import load_state_dict, save_for_hf
from torch import Tensor, nn

from .connectivity import connectivity_name
from .models.base import GraphNet
from .stages import graph_stages

__all__ = [
    'Origin',
    'checkpoint_origin',
    'graphs_of',
    'load',
    'read_checkpoint',
    'save',
    'saved_config',
    'training_options',
]

#: Rises when a saved network stops being readable by older versions of this package.
FORMAT = 1


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
    named = getattr(model, 'pretrained_cfg', {}).get('architecture')
    if not named or not hasattr(model, 'num_classes'):
        raise TypeError(
            f'save needs a whole model from timm.create_model, got {type(model).__name__}'
        )
    if folder.exists() and not _is_ours(folder):
        raise FileExistsError(f'{folder} exists and holds no saved network; choose another folder')
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f'.{folder.name}-', dir=folder.parent) as scratch:
        new, old = Path(scratch) / 'new', Path(scratch) / 'old'
        new.mkdir()
        save_for_hf(
            copy.deepcopy(model).to(memory_format=torch.contiguous_format),
            new,
            model_config={
                'timm_topo_format': FORMAT,
                'label_names': list(label_names) if label_names else None,
            },
            model_args=model.topology() if hasattr(model, 'topology') else None,
            safe_serialization=True,
            data_config=data_config,
        )
        if folder.exists():
            os.replace(folder, old)
        try:
            os.replace(new, folder)
        except BaseException:
            if old.exists():
                os.replace(old, folder)
            raise
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
    """The config of a saved network.

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
    version = config.get('timm_topo_format', FORMAT)
    if not isinstance(version, int):
        raise ValueError(f'{folder / "config.json"} has format {version!r}, not a number')
    if version > FORMAT:
        raise ValueError(
            f'{folder} has format {version}, this version reads up to {FORMAT}: upgrade timm_topo'
        )
    return config


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
        return timm.create_model(f'local-dir:{folder}', **kwargs)
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
    args = training_options(path)
    name, kwargs = args.get('model'), args.get('model_kwargs') or {}
    if args.get('from_saved') or not name or not timm.is_model(name):  # ':' stands for anything
        return Origin(path, None, None, args.get('mean'), args.get('std'))
    name = name.split('.')[0]
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
    if path.suffix == '.safetensors':
        return {}
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            stored = torch.load(path, map_location='meta', weights_only=True)
    except Exception:  # read_checkpoint says what is wrong with it
        return {}
    args = stored.get('args') if isinstance(stored, dict) else None
    return vars(args) if isinstance(args, argparse.Namespace) else {}
