"""Options of training: one typed object, from YAML, the command line or Python.

Options that timm's ``train.py`` has are called and mean the same here.
"""

import argparse
import dataclasses
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import jsonargparse
import yaml
from jsonargparse.typing import (
    ClosedUnitInterval,
    NonNegativeFloat,
    PositiveInt,
    restricted_number_type,
)
from timm.utils import ParseKwargs

from ..checkpoint import FORMAT, FORMAT_KEY, check_format
from ..checks import one_line
from ..schema import check_plain, read_bounded

__all__ = [
    'TrainingOptions', 'check_options', 'labelled', 'parse_args', 'positive', 'read_options',
]  # fmt: skip

_MOST_BYTES = 2**18  # of a file with options: YAML is slow
_Interval = restricted_number_type('Interval', float, [('>=', 0.001), ('<', math.inf)])
_Kept = Literal['reset', 'keep', 'frozen', 'finetune', 'finetune-frozen']
_Epochs = restricted_number_type('Epochs', float, [('>=', 0), ('<', math.inf)])


def _option(group: str, default: Any, text: str = '', *flags: str, **how) -> Any:
    """A field: group, default and help of an option, its short flags, and more for argparse."""
    metadata = {'group': group, 'help': text or None, 'flags': flags, **how}
    if isinstance(default, (dict, list)):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


_data = partial(_option, 'data')
_model = partial(_option, 'model')
_distillation = partial(_option, 'distillation')
_optimizer = partial(_option, 'optimizer')
_schedule = partial(_option, 'schedule')
_augmentation = partial(_option, 'augmentation and regularisation')
_device = partial(_option, 'device')
_run = partial(_option, 'run')
_many = dict(nargs='+', type=float)


@dataclass
class TrainingOptions:
    """Options of a training. Every field is an option of ``topo train``.

    Raises:
        ValueError: A value that the option does not allow.
    """

    # fmt: off
    dataset: str | None = _data(
        None, "digits (built in), idx, strips, torch/..., hfds/..., wds/..., tfds/..., or '' for a "
        "folder of class folders (default: '' with --data-dir, else digits); colour/NAME and "
        'tiles/NAME: an easier and a harder variant of it', metavar='NAME')
    data_dir: str | None = _data(None, 'folder with the data', metavar='DIR')
    train_split: str = _data('train', metavar='NAME')
    val_split: str = _data('validation', metavar='NAME')
    train_images: PositiveInt | None = _data(
        None, 'train on N images, drawn at random, always the same ones (default: all)',
        metavar='N')
    dataset_download: bool = _data(False, 'let torch/... download')
    workers: int = _data(2, '', '-j', metavar='N')
    img_size: int | None = _data(None, "default: the model's", metavar='N')
    input_size: list[int] | None = _data(None, 'C H W', nargs=3, type=int, metavar='N')
    crop_pct: float | None = _data(None, 'validation centre crop', metavar='PCT')
    mean: list[float] | None = _data(None, **_many)
    std: list[float] | None = _data(None, **_many)
    interpolation: str = _data('', metavar='NAME')

    model: str = _model('toponet_tiny_adaptive', metavar='NAME')
    model_kwargs: dict = _model({}, metavar='K=V')
    seed_wiring: bool = _model(
        False, 'draw random wirings by --seed (default: by their own, a name is one network)')
    rewire: str | None = _model(
        None, 're-wire the stages of a residual timm model: graphs with edge weights by RULE',
        nargs='?', const='alpha', metavar='RULE')
    rewire_kwargs: dict = _model(
        {}, 'sparsity=adaptive, sparsity_weight=1e-4, wiring=..., projection=True, exact=False, '
        'projected_entry=True, and options of the rule: router_init=0.99, tau=0.2, init=0.5',
        metavar='K=V')
    num_classes: int | None = _model(None, 'default: as in the data', metavar='N')
    drop: float = _model(
        0.0, 'dropout before the classifier (default: none, or that of --from-saved)',
        metavar='PCT')
    in_chans: PositiveInt | None = _model(
        None, 'image channels: 1 (grey), 2 (and alpha), 3 (colour), 4 (and alpha); default: 3',
        metavar='N')
    pretrained: bool = _model(False, "start from timm's weights of the model")
    pretrained_path: str = _model(
        '', 'start from these instead, as timm reads pretrained ones, with a new classifier',
        metavar='FILE')
    initial_checkpoint: str = _model(
        '', 'start from the weights of a training; a classifier of other classes starts anew',
        metavar='FILE')
    from_saved: str | None = _model(
        None, 'train the saved (pruned) network in FOLDER instead of --model', metavar='FOLDER')
    from_saved_weights: _Kept | None = _model(
        None, 'retrain from scratch with edge weights reset, kept or frozen, or finetune '
        'everything or everything but frozen edge weights (default: reset; with --rewire finetune)',
        metavar='HOW')
    snapshot: _Epochs | None = _model(
        None, 'with --from-saved RUN/model and weights frozen: those edge weights that the run had '
        'after EPOCH epochs (0: before training), from RUN/edge_weights', metavar='EPOCH')
    fit_parameters: PositiveInt | None = _model(
        None, 'with --from-saved and weights reset: as many channels as come nearest to N '
        'parameters, in the saved wiring (networks with an option channels: dagnet)', metavar='N')

    kd_model_name: str | None = _distillation(
        None, 'learn from the logits of this network too: a saved one, the folder of a run, or a '
        'name of timm, with its weights', metavar='NETWORK')
    kd_temperature: float = _distillation(1.0)
    distill_loss_weight: float | None = _distillation(
        None, 'default: 1, or 1 less --task-loss-weight')
    task_loss_weight: float | None = _distillation(None, 'of the labels (default: 1)')

    batch_size: PositiveInt = _optimizer(128, 'per process', '-b', metavar='N')
    validation_batch_size: PositiveInt | None = _optimizer(None, '', '-vb', metavar='N')
    grad_accum_steps: PositiveInt = _optimizer(1, metavar='N')
    opt: str = _optimizer('sgd', 'any timm optimizer', metavar='NAME')
    opt_eps: float | None = _optimizer(None)
    opt_betas: list[float] | None = _optimizer(None, **_many)
    opt_kwargs: dict = _optimizer({}, metavar='K=V')
    momentum: float = _optimizer(0.9)
    weight_decay: float = _optimizer(
        1e-4, 'as in timm not of biases and norms: all by --opt-kwargs filter_bias_and_bn=False')
    decay_edges: bool = _optimizer(False, 'edge weights too, of every rule')
    edge_lr_scale: NonNegativeFloat = _optimizer(
        1.0, 'rate of edge weights, masks and routers relative to --lr', metavar='SCALE')
    layer_decay: float | None = _optimizer(
        None, 'rate of each layer relative to that of the next one (default: all the same)',
        metavar='RATE')
    layer_decay_min_scale: float = _optimizer(
        0.0, 'at least this share of --lr for every layer', metavar='SCALE')
    clip_grad: float | None = _optimizer(None, metavar='NORM')
    clip_mode: Literal['norm', 'value', 'agc'] = _optimizer('norm')

    sched: str = _schedule('cosine', 'any timm scheduler', metavar='NAME')
    lr: float = _schedule(0.1, 'for the whole batch, not scaled')
    epochs: PositiveInt = _schedule(100, metavar='N')
    warmup_epochs: int = _schedule(0, metavar='N')
    warmup_lr: float = _schedule(1e-5)
    min_lr: float = _schedule(0.0)
    cooldown_epochs: int = _schedule(0, metavar='N')
    learn_edges: ClosedUnitInterval = _schedule(
        1.0, 'share of the epochs in which edge weights learn; then they are fixed, masks to the K '
        'largest (default: all)', metavar='SHARE')
    decay_milestones: list[int] = _schedule([60, 120, 160], nargs='+', type=int)
    decay_epochs: float = _schedule(90.0)
    decay_rate: float = _schedule(0.1)
    sched_on_updates: bool = _schedule(False)

    aug: bool = _augmentation(True, 'none at all with --no-aug')
    crop_padding: int | None = _augmentation(
        None, 'pad by N and crop at random, then flip: the CIFAR recipe, instead of resized crops',
        metavar='N')
    scale: list[float] = _augmentation([0.08, 1.0], nargs=2, type=float)
    ratio: list[float] = _augmentation([3 / 4, 4 / 3], nargs=2, type=float)
    hflip: float = _augmentation(0.5)
    vflip: float = _augmentation(0.0)
    color_jitter: float = _augmentation(0.0)
    aa: str | None = _augmentation(None, 'AutoAugment or RandAugment policy', metavar='POLICY')
    train_interpolation: str = _augmentation('random')
    reprob: float = _augmentation(0.0, 'random erasing')
    mixup: float = _augmentation(0.0)
    cutmix: float = _augmentation(0.0)
    mixup_prob: float = _augmentation(1.0)
    mixup_switch_prob: float = _augmentation(0.5)
    smoothing: float = _augmentation(0.1, 'label smoothing')

    device: str | None = _device(None, 'default: cuda if there is one, else cpu')
    amp: bool = _device(False, 'mixed precision')
    amp_dtype: Literal['float16', 'bfloat16'] = _device('float16')
    channels_last: bool = _device(False)
    torchcompile: str | None = _device(None, nargs='?', const='inductor', metavar='BACKEND')
    grad_checkpointing: bool = _device(False)
    sync_bn: bool = _device(False)
    dist_bn: Literal['reduce', 'broadcast', ''] = _device('reduce')

    model_ema: bool = _run(False, 'also keep averaged weights')
    model_ema_decay: float = _run(0.9998)
    model_ema_warmup: bool = _run(False)
    output: str = _run('output', metavar='DIR')
    experiment: str = _run('', 'folder in --output', metavar='NAME')
    resume: str = _run(
        '', "checkpoint to go on from, or 'auto': the experiment's last one if there is one",
        metavar='PATH')
    seed: int = _run(42)
    log_interval: PositiveInt = _run(50, 'batches', metavar='N')
    checkpoint_hist: PositiveInt = _run(2, metavar='N')
    snapshot_interval: _Interval = _run(
        1.0, 'write edge weights every so many epochs, 0.25: four times in each; before training '
        'and after the last epoch in any case (default: 1)', metavar='EPOCHS')
    save: Literal['best', 'last'] = _run(
        'best', 'whose weights are saved as model/: best evaluation top-1, or last epoch')
    tensorboard: bool = _run(True, 'write events for TensorBoard')
    # fmt: on

    def __post_init__(self):
        vars(self).update(_checked(vars(self)))
        if self.dataset is None:
            self.dataset = '' if self.data_dir else 'digits'
        if self.from_saved_weights is None:
            self.from_saved_weights = 'reset' if self.rewire is None else 'finetune'


class _Parser(jsonargparse.ArgumentParser):
    """A parser that says in one line what is wrong."""

    def error(self, message: str, ex: Exception | None = None) -> None:
        if not self.exit_on_error:
            raise ValueError(_said(message)) from None
        self.print_usage(sys.stderr)
        print(f'{self.prog}: error: {_said(message)}', file=sys.stderr)
        raise SystemExit(2)


class _Help(jsonargparse.DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Types and defaults behind the help of an option, and descriptions as they are."""


def _said(message: str) -> str:
    text = re.sub(r'Parser key "(\w+)"', r'\1', one_line(message))
    return re.sub(
        r"Does not validate .* Errors: - (.*?) - Expected a <class 'NoneType'>.*", r'\1', text
    )


def _parser(exits: bool = True, prog: str | None = None, description: str | None = None):
    parser = _Parser(
        prog=prog,
        usage='%(prog)s [-c FILE] [options]; --help lists them',
        description=description,
        formatter_class=_Help,
        exit_on_error=exits,
    )
    parser.add_argument('-c', '--config', metavar='FILE', help='YAML file with options')
    groups = {}
    for field in dataclasses.fields(TrainingOptions):
        how = dict(field.metadata)
        title, flags = how.pop('group'), how.pop('flags')
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        if field.type is bool:
            how['action'] = jsonargparse.ActionYesNo(no_prefix='no-')
        elif field.type is dict:
            how |= {'action': ParseKwargs, 'nargs': '*'}
        else:
            how.setdefault('type', field.type)
        has = field.default is not dataclasses.MISSING
        default = field.default if has else field.default_factory()
        name = f'--{field.name.replace("_", "-")}'
        groups[title].add_argument(*flags, name, default=default, **how)
    return parser


@lru_cache
def _checker() -> _Parser:
    return _parser(exits=False)


def _checked(options: dict) -> dict:
    """Options by name, each of its type.

    Raises:
        ValueError: A value that its option does not allow.
    """
    checked = {}
    for field in dataclasses.fields(TrainingOptions):
        if field.name in options:
            value = options[field.name]
            try:
                checked[field.name] = _typed(field, value)
            except ValueError as error:
                raise ValueError(f'bad value for {field.name}: {value!r}: {error}') from None
    return checked


def _typed(field: dataclasses.Field, value: Any) -> Any:
    several = field.metadata.get('nargs')
    if value is None and field.default is None:
        return None
    if field.type is bool and not isinstance(value, bool):
        raise ValueError('it is true or false')
    if field.type is dict:
        if not isinstance(value, dict):
            raise ValueError('it is a mapping')
        return {name: _number(one) for name, one in value.items()}
    if several in ('+', 2, 3):
        sized = isinstance(value, (list, tuple)) and len(value) > 0
        if not sized or (several != '+' and len(value) != several):
            raise ValueError(f'it is a list of {"" if several == "+" else f"{several} "}numbers')
    numbers = value if isinstance(value, (list, tuple)) else [value]
    if value is None or any(isinstance(x, float) and not math.isfinite(x) for x in numbers):
        raise ValueError('it is a finite number')
    typed = _checker().parse_object({field.name: value}, defaults=False)[field.name]
    if isinstance(typed, (int, float)) and not isinstance(typed, bool):
        return int(typed) if isinstance(typed, int) else float(typed)  # of a plain type, for YAML
    return typed


def _number(value: Any) -> Any:
    """``1e-4`` is text to YAML, but nobody means text by it."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def parse_args(
    argv: Sequence[str] | None = None,
    defaults: str | Path | Mapping | None = None,
    prog: str | None = None,
    description: str | None = None,
) -> TrainingOptions:
    """Defaults, overridden by the YAML file, overridden by the command line.

    Args:
        argv: Arguments; the command line's by default. Errors exit with status 2 and a message.
        defaults: Options, or another YAML file with some, that override the defaults alone:
            ``args.yaml`` of a run, for one that differs from it in some.
        prog: Name of the command, for its help; by default that of the program.
        description: Purpose of the command, for its help.
    """
    argv = sys.argv[1:] if argv is None else list(map(str, argv))
    parser = _parser(prog=prog, description=description)
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument('-c', '--config')
    try:
        config = first.parse_known_args(argv)[0].config
        for given in filter(None, (defaults, config)):
            parser.set_defaults(given if isinstance(given, Mapping) else read_options(given))
    except (OSError, ValueError, argparse.ArgumentError) as error:
        parser.error(str(error))
    args = parser.parse_args(argv).as_dict()
    del args['config']
    return TrainingOptions(**args)


def read_options(path: str | Path) -> dict:
    """Options from a YAML file, each of its type; without the number of its format.

    Raises:
        OSError: The file cannot be read.
        ValueError: No YAML mapping, an option that does not exist, a value that it does not allow,
            or a newer format.
    """
    try:
        options = yaml.safe_load(read_bounded(Path(path), _MOST_BYTES))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ValueError(f'{path} is not YAML: {error}') from None
    if not isinstance(options, dict):
        raise ValueError(f'{path} holds no options')
    check_plain(options, path)
    check_format(options.pop(FORMAT_KEY, FORMAT), path)
    return check_options(options, path)


def check_options(options: Mapping, source: str | Path) -> dict:
    """Options by name, each of its type.

    Args:
        options: As a file has them.
        source: Where they stand, for errors.

    Raises:
        ValueError: An option that does not exist, or a value that it does not allow.
    """
    options = dict(options)
    for name in ('aug', 'tensorboard'):  # as timm calls them
        if isinstance(options.get(f'no_{name}'), bool):
            options[name] = not options.pop(f'no_{name}')
    known = [field.name for field in dataclasses.fields(TrainingOptions)]
    unknown = sorted(map(str, options.keys() - set(known)))
    if unknown:
        raise ValueError(f'{source}: unknown option {", ".join(unknown)}')
    try:
        return _checked(options)
    except ValueError as error:
        raise ValueError(f'{source}: {error}') from None


def positive(text: str | float) -> int:
    """A whole number from 1 on, as the type of an option."""
    if not str(text).isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'must be a whole number from 1 on, got {text!r}')
    return int(text)


def epochs_done(text: str | float) -> float:
    """A number from 0 on, an int where it is whole, as the type of an option."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise argparse.ArgumentTypeError(f'must be a number from 0 on, got {text!r}')
    return int(number) if number.is_integer() else number


def labelled(text: str) -> tuple[str, str]:
    """``'LABEL=FOLDER'`` as a pair; of a folder alone, the folder is the label."""
    label, _, folder = text.partition('=')
    if label and folder and '/' not in label and not Path(text).exists():
        return label, folder
    return text, text
