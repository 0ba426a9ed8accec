"""The network in a checkpoint, whoever wrote it: saved networks, runs, files of weights."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import timm
import yaml
from timm.data import resolve_input_data_config
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from ..checkpoint import (
    FORMAT_KEY,
    build_described,
    load,
    migrate,
    planned,
    read_checkpoint,
    saved_config,
    stored_network,
    training_options,
)
from ..checks import one_line
from ..schema import check_network, check_values, without_sources
from .build import build_model, split_rewire_kwargs
from .options import TrainingOptions, read_options

__all__ = ['restore']

#: How the images were prepared that a network was trained on.
_PREPARED = ('input_size', 'interpolation', 'mean', 'std', 'crop_pct', 'crop_mode')

#: Options of a training that tell its network and how images were prepared; others do not matter,
#: and those that load weights are not followed.
_TOLD = (
    'model', 'model_kwargs', 'num_classes', 'in_chans', 'drop', 'rewire', 'rewire_kwargs', 'seed',
    'seed_wiring', 'from_saved', 'from_saved_weights', 'fit_parameters', 'snapshot', 'input_size',
    'img_size', 'mean', 'std', 'crop_pct', 'interpolation',
)  # fmt: skip


def restore(
    path: str | Path, model: str | None = None, model_kwargs: Mapping | None = None
) -> nn.Module:
    """Build the network of a checkpoint and load its weights, averaged ones (EMA) first.

    Args:
        path: The folder of a saved network; that of a finished run, with a saved network in its
            folder ``model``; or a ``.pth.tar``, ``.pth`` or ``.safetensors`` file. Checkpoints of
            our training, and of timm's with ours, tell what network they are of; otherwise the
            options of timm's in them do, or an ``args.yaml`` beside them.
        model: Name of the network, for a file that does not tell.
        model_kwargs: Its options.

    Returns:
        The network, in evaluation mode.

    Raises:
        FileNotFoundError: There is nothing at ``path``, or a run that has not finished.
        ValueError: It is damaged, holds more than weights, is of a newer format or of another
            network, or does not tell of which.
    """
    path = Path(path)
    if path.name == 'model.safetensors' and (path.parent / 'config.json').is_file():
        path = path.parent  # of a saved network
    if path.is_dir():
        if model is not None:
            raise ValueError(f'{path} is a folder, which names its own network, not {model}')
        inside = (path / 'args.yaml').is_file() or (path / 'model').is_dir()
        if inside and not (path / 'config.json').exists():
            if not (path / 'model').is_dir():
                raise FileNotFoundError(
                    f'{path} is a run that has not finished: name one of its checkpoints, '
                    f'{path / "last.pth.tar"}'
                )
            path = path / 'model'
        return load(path).eval()
    if not path.is_file():
        raise FileNotFoundError(
            f'{path} is no checkpoint: there is neither a folder nor a file of that name'
        )
    state = read_checkpoint(path)
    described = stored_network(path) if model is None else None
    args = _options(path, model, model_kwargs, described)
    if not described:
        args.num_classes = args.num_classes or _classes(args, state)
    build = partial(_build, args, described)
    planned(build, path.stat().st_size, f'{path}: options do not fit {args.model}')
    try:
        network = build()
        network.load_state_dict(state)
    except RuntimeError as error:
        reason = one_line(error)
        name = args.from_saved or args.model
        raise ValueError(f'{path} is of another network than {name}: {reason}') from None
    return network.eval()


def _build(args: TrainingOptions, described: dict | None) -> nn.Module:
    """The network, and how its images were prepared."""
    network = build_described(described) if described else build_model(args, None)
    prepared = resolve_input_data_config(network, vars(args))
    network.pretrained_cfg = {**network.pretrained_cfg, **{n: prepared[n] for n in _PREPARED}}
    return network


def _options(
    path: Path, model: str | None, model_kwargs: Mapping | None, described: dict | None
) -> TrainingOptions:
    """Options of the training that wrote the file, in the format of today."""
    args = TrainingOptions()
    if model is None:
        told, number = training_options(path), 0
        beside = path.parent / 'args.yaml'
        if not told and beside.is_file():
            told = read_options(beside)
            number = yaml.safe_load(beside.read_text(encoding='utf-8')).get(FORMAT_KEY, 0)
        told = {name: told[name] for name in _TOLD if name in told}
        if not described and 'model' not in told:
            raise ValueError(f'{path} does not tell of which network it is: give its name, --model')
        try:
            check_values(told)
            told = told if described else _migrated(told, number, path)
        except ValueError as error:
            name = '' if described else f' do not fit {told["model"]}'
            raise ValueError(f'{path}: options{name}: {error}') from None
        vars(args).update({name: told[name] for name in _TOLD if name in told})
    else:
        args.model, args.model_kwargs = model, dict(model_kwargs or {})
        args.num_classes = args.model_kwargs.pop('num_classes', None)
    if described:
        args.model, args.from_saved = described['architecture'], None
    named = isinstance(args.model, str) and timm.is_model(args.model.split('.')[0])
    if not args.from_saved and not named:
        raise ValueError(f'{path} is of an unknown model {args.model!r}: see timm.list_models()')
    return args


def _migrated(told: Mapping, number: int, path: Path) -> dict:
    """Options of a training, those of the network in the format of today."""
    network = {'architecture': told['model'], 'model_args': told.get('model_kwargs')}
    network = migrate(check_network(network), number, path)
    told = {**told, 'model': network['architecture'], 'model_kwargs': network['model_args']}
    if told.get('rewire'):
        options, of_rule = split_rewire_kwargs(without_sources(told.get('rewire_kwargs') or {}))
        options['connectivity'] = {'name': told['rewire'], **of_rule}
        network = check_network({'architecture': 'rewired', 'model_args': options})
        network = migrate(network, number, path)
        rule = network['model_args'].pop('connectivity')
        told |= {'rewire': rule.pop('name'), 'rewire_kwargs': {**rule, **network['model_args']}}
    return told


def _classes(args: TrainingOptions, state: dict[str, Tensor]) -> int:
    """Number of classes, by the classifier's weights."""
    if args.from_saved:
        classifier = saved_config(args.from_saved).get('pretrained_cfg', {}).get('classifier')
    else:
        cfg = get_pretrained_cfg(args.model, allow_unregistered=True)
        classifier = getattr(cfg, 'classifier', None)
    weight = state.get(f'{classifier or "head.fc"}.weight')
    return 0 if weight is None else len(weight)
