"""Options of ``tools/train.py``: timm's names and meanings, from YAML or the command line."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import yaml
from timm.utils import ParseKwargs

from ..checkpoint import FORMAT, FORMAT_KEY, check_format
from ..schema import check_plain, read_bounded

__all__ = ['build_parser', 'labelled', 'parse_args', 'positive']

_MOST_BYTES = 2**18  # of a file with options: YAML is slow


def build_parser() -> argparse.ArgumentParser:
    """The parser. Options that timm's ``train.py`` has are called and mean the same here."""
    parser = argparse.ArgumentParser(
        description='Train an image classifier whose connectivity is learned.',
        epilog='Several processes: torchrun --nproc-per-node=N tools/train.py ...',
    )
    parser.add_argument('-c', '--config', metavar='FILE', help='YAML file with options')
    for add in (_data, _model, _optimizer, _schedule, _augmentation, _device, _run):
        add(parser)
    return parser


def _data(parser):
    group = parser.add_argument_group('data')
    group.add_argument(
        '--dataset', metavar='NAME',
        help="digits (built in), idx, strips, torch/..., hfds/..., wds/..., tfds/..., or '' for a "
        "folder of class folders (default: '' with --data-dir, else digits); colour/NAME and "
        'tiles/NAME: an easier and a harder variant of it',
    )  # fmt: skip
    group.add_argument('--data-dir', metavar='DIR', help='folder with the data')
    group.add_argument('--train-split', default='train', metavar='NAME')
    group.add_argument('--val-split', default='validation', metavar='NAME')
    group.add_argument(
        '--train-images', type=positive, metavar='N',
        help='train on N images, drawn at random, always the same ones (default: all)',
    )  # fmt: skip
    group.add_argument('--dataset-download', action='store_true', help='let torch/... download')
    group.add_argument('-j', '--workers', type=int, default=2, metavar='N')
    group.add_argument('--img-size', type=int, metavar='N', help="default: the model's")
    group.add_argument('--input-size', type=int, nargs=3, metavar='N', help='C H W')
    group.add_argument('--crop-pct', type=float, metavar='PCT', help='validation centre crop')
    group.add_argument('--mean', type=float, nargs='+')
    group.add_argument('--std', type=float, nargs='+')
    group.add_argument('--interpolation', default='', metavar='NAME')


def _model(parser):
    group = parser.add_argument_group('model')
    group.add_argument('--model', default='toponet_tiny_adaptive', metavar='NAME')
    group.add_argument('--model-kwargs', nargs='*', default={}, action=ParseKwargs)
    group.add_argument(
        '--rewire', nargs='?', const='alpha', metavar='RULE',
        help='re-wire the stages of a residual timm model: graphs with edge weights by RULE',
    )  # fmt: skip
    group.add_argument(
        '--rewire-kwargs', nargs='*', default={}, action=ParseKwargs, metavar='K=V',
        help='sparsity=adaptive, sparsity_weight=1e-4, wiring=..., projection=True, exact=False, '
        'projected_entry=True, and options of the rule: router_init=0.99, tau=0.2, init=0.5',
    )  # fmt: skip
    group.add_argument('--num-classes', type=int, metavar='N', help='default: as in the data')
    group.add_argument(
        '--drop', type=float, default=0.0, metavar='PCT',
        help='dropout before the classifier (default: none, or that of --from-saved)',
    )  # fmt: skip
    group.add_argument('--initial-checkpoint', default='', metavar='PATH')
    group.add_argument(
        '--from-saved', metavar='FOLDER',
        help='train the saved (pruned) network in FOLDER instead of --model',
    )  # fmt: skip
    group.add_argument(
        '--from-saved-weights',
        choices=('reset', 'keep', 'frozen', 'finetune', 'finetune-frozen'),
        help='retrain from scratch with edge weights reset, kept or frozen, or finetune everything '
        'or everything but frozen edge weights (default: reset; with --rewire finetune)',
    )  # fmt: skip
    group.add_argument(
        '--snapshot', type=epochs_done, metavar='EPOCH',
        help='with --from-saved RUN/model and weights frozen: those edge weights that the run had '
        'after EPOCH epochs (0: before training), from RUN/edge_weights',
    )  # fmt: skip
    group.add_argument(
        '--fit-parameters', type=positive, metavar='N',
        help='with --from-saved and weights reset: as many channels as come nearest to N '
        'parameters, in the saved wiring (networks with an option channels: dagnet)',
    )  # fmt: skip


def _optimizer(parser):
    group = parser.add_argument_group('optimizer')
    group.add_argument('-b', '--batch-size', type=int, default=128, metavar='N', help='per process')
    group.add_argument('-vb', '--validation-batch-size', type=int, metavar='N')
    group.add_argument('--grad-accum-steps', type=int, default=1, metavar='N')
    group.add_argument('--opt', default='sgd', metavar='NAME', help='any timm optimizer')
    group.add_argument('--opt-eps', type=float)
    group.add_argument('--opt-betas', type=float, nargs='+')
    group.add_argument('--opt-kwargs', nargs='*', default={}, action=ParseKwargs)
    group.add_argument('--momentum', type=float, default=0.9)
    group.add_argument('--weight-decay', type=float, default=1e-4)
    group.add_argument('--layer-decay', type=float)
    group.add_argument('--clip-grad', type=float, metavar='NORM')
    group.add_argument('--clip-mode', default='norm', choices=('norm', 'value', 'agc'))


def _schedule(parser):
    group = parser.add_argument_group('schedule')
    group.add_argument('--sched', default='cosine', metavar='NAME', help='any timm scheduler')
    group.add_argument('--lr', type=float, default=0.1, help='for the whole batch, not scaled')
    group.add_argument('--epochs', type=int, default=100, metavar='N')
    group.add_argument('--warmup-epochs', type=int, default=0, metavar='N')
    group.add_argument('--warmup-lr', type=float, default=1e-5)
    group.add_argument('--min-lr', type=float, default=0.0)
    group.add_argument('--cooldown-epochs', type=int, default=0, metavar='N')
    group.add_argument('--decay-milestones', type=int, nargs='+', default=[60, 120, 160])
    group.add_argument('--decay-epochs', type=float, default=90)
    group.add_argument('--decay-rate', type=float, default=0.1)
    group.add_argument('--sched-on-updates', action='store_true')


def _augmentation(parser):
    group = parser.add_argument_group('augmentation and regularisation')
    group.add_argument('--no-aug', action='store_true', help='none at all')
    group.add_argument(
        '--crop-padding', type=int, metavar='N',
        help='pad by N and crop at random, then flip: the CIFAR recipe, instead of resized crops',
    )  # fmt: skip
    group.add_argument('--scale', type=float, nargs=2, default=[0.08, 1.0])
    group.add_argument('--ratio', type=float, nargs=2, default=[3 / 4, 4 / 3])
    group.add_argument('--hflip', type=float, default=0.5)
    group.add_argument('--vflip', type=float, default=0.0)
    group.add_argument('--color-jitter', type=float, default=0.0)
    group.add_argument('--aa', metavar='POLICY', help='AutoAugment or RandAugment policy')
    group.add_argument('--train-interpolation', default='random')
    group.add_argument('--reprob', type=float, default=0.0, help='random erasing')
    group.add_argument('--mixup', type=float, default=0.0)
    group.add_argument('--cutmix', type=float, default=0.0)
    group.add_argument('--mixup-prob', type=float, default=1.0)
    group.add_argument('--mixup-switch-prob', type=float, default=0.5)
    group.add_argument('--smoothing', type=float, default=0.1, help='label smoothing')


def _device(parser):
    group = parser.add_argument_group('device')
    group.add_argument('--device', help='default: cuda if there is one, else cpu')
    group.add_argument('--amp', action='store_true', help='mixed precision')
    group.add_argument('--amp-dtype', default='float16', choices=('float16', 'bfloat16'))
    group.add_argument('--channels-last', action='store_true')
    group.add_argument('--torchcompile', nargs='?', const='inductor', metavar='BACKEND')
    group.add_argument('--grad-checkpointing', action='store_true')
    group.add_argument('--sync-bn', action='store_true')
    group.add_argument('--dist-bn', default='reduce', choices=('reduce', 'broadcast', ''))


def _run(parser):
    group = parser.add_argument_group('run')
    group.add_argument('--model-ema', action='store_true', help='also keep averaged weights')
    group.add_argument('--model-ema-decay', type=float, default=0.9998)
    group.add_argument('--model-ema-warmup', action='store_true')
    group.add_argument('--output', default='output', metavar='DIR')
    group.add_argument('--experiment', default='', metavar='NAME', help='folder in --output')
    group.add_argument(
        '--resume', default='', metavar='PATH',
        help="checkpoint to go on from, or 'auto': the experiment's last one if there is one",
    )  # fmt: skip
    group.add_argument('--seed', type=int, default=42)
    group.add_argument('--log-interval', type=int, default=50, metavar='N', help='batches')
    group.add_argument('--checkpoint-hist', type=int, default=2, metavar='N')
    group.add_argument(
        '--snapshot-interval', type=interval, default=1.0, metavar='EPOCHS',
        help='write edge weights every so many epochs, 0.25: four times in each; before training '
        'and after the last epoch in any case (default: 1)',
    )  # fmt: skip
    group.add_argument(
        '--save', choices=('best', 'last'), default='best',
        help='whose weights are saved as model/: best evaluation top-1, or last epoch',
    )  # fmt: skip
    group.add_argument('--no-tensorboard', action='store_true')


def positive(text: str | float) -> int:
    """A whole number from 1 on, as the type of an option."""
    if not str(text).isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'must be a whole number from 1 on, got {text!r}')
    return int(text)


def interval(text: str | float) -> float:
    """A number of epochs from 0.001 on, as the type of an option: names have three decimals."""
    number = _finite(text)
    if number is None or number < 0.001:
        raise argparse.ArgumentTypeError(f'must be a number from 0.001 on, got {text!r}')
    return number


def epochs_done(text: str | float) -> float:
    """A number from 0 on, an int where it is whole, as the type of an option."""
    number = _finite(text)
    if number is None or number < 0:
        raise argparse.ArgumentTypeError(f'must be a number from 0 on, got {text!r}')
    return int(number) if number.is_integer() else number


def _finite(text: str | float) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def labelled(text: str) -> tuple[str, str]:
    """``'LABEL=FOLDER'`` as a pair; of a folder alone, the folder is the label."""
    label, _, folder = text.partition('=')
    if label and folder and '/' not in label and not Path(text).exists():
        return label, folder
    return text, text


def parse_args(
    argv: Sequence[str] | None = None, defaults: str | Path | None = None
) -> argparse.Namespace:
    """Defaults, overridden by the YAML file, overridden by the command line.

    Args:
        argv: Arguments; the command line's by default. Errors exit with status 2 and a message.
        defaults: Another YAML file, whose options override the defaults alone: ``args.yaml`` of a
            run, for one that differs from it in some.
    """
    parser = build_parser()
    config = parser.parse_known_args(argv)[0].config
    read = {}
    for path in filter(None, (defaults, config)):
        try:
            read.update(read_config(path, parser))
        except (OSError, ValueError, TypeError) as error:
            parser.error(str(error))
    parser.set_defaults(**read)
    args = parser.parse_args(argv)
    if args.dataset is None:
        args.dataset = '' if args.data_dir else 'digits'
    if args.from_saved_weights is None:
        args.from_saved_weights = 'reset' if args.rewire is None else 'finetune'
    for name in ('batch_size', 'grad_accum_steps', 'epochs', 'log_interval', 'checkpoint_hist'):
        if (getattr(args, name) or 0) < 1:
            parser.error(f'--{name.replace("_", "-")} must be at least 1')
    return args


def read_config(path: str | Path, parser: argparse.ArgumentParser) -> dict:
    """Options from a YAML file, checked against the parser; without the number of its format.

    Raises:
        OSError: The file cannot be read.
        TypeError: A value is of the wrong type for its option.
        ValueError: No YAML mapping, an option that does not exist, or a newer format.
    """
    try:
        options = yaml.safe_load(read_bounded(Path(path), _MOST_BYTES))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ValueError(f'{path} is not YAML: {error}') from None
    if not isinstance(options, dict):
        raise ValueError(f'{path} holds no options')
    check_plain(options, path)
    check_format(options.pop(FORMAT_KEY, FORMAT), path)
    actions = {action.dest: action for action in parser._actions}
    unknown = sorted(map(str, set(options) - (set(actions) - {'config', 'help'})))
    if unknown:
        raise ValueError(f'{path}: unknown option {", ".join(unknown)}')
    for name, value in options.items():
        options[name] = _typed(path, actions[name], value)
    return options


def _number(value):
    """``1e-4`` is text to YAML, but nobody means text by it."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _fits(kind, value) -> bool:
    """Whether ``kind`` (None: text) reads ``value`` as it is meant: no 1.5 or true as an int."""
    if kind is None or isinstance(value, str):
        try:
            return isinstance(value, str) and (kind is None or kind(value) is not None)
        except (ValueError, argparse.ArgumentTypeError):
            return False
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return kind(value) == value
    except (ValueError, OverflowError, argparse.ArgumentTypeError):  # of nan and inf
        return False


def _typed(path, action: argparse.Action, value):
    """A YAML value as the command line would have given it: ``1e-4`` is text to YAML."""
    if value is None and action.default is None:
        return None
    if isinstance(action, argparse._StoreTrueAction):
        ok = isinstance(value, bool)
    elif isinstance(action, ParseKwargs):
        ok = isinstance(value, dict)
        value = {key: _number(one) for key, one in value.items()} if ok else value
    elif action.nargs in ('+', 2, 3):
        ok = isinstance(value, list) and (
            bool(value) if action.nargs == '+' else len(value) == action.nargs
        )
        ok = ok and all(_fits(action.type, one) for one in value)
        value = [action.type(one) for one in value] if ok else value
    else:
        ok = _fits(action.type, value)
        value = action.type(value) if ok and action.type else value
    if ok and action.choices and value not in action.choices:
        ok = False
    if not ok:
        raise TypeError(f'{path}: bad value for {action.dest}: {value!r}')
    return value
