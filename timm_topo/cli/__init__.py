"""The command ``topo``: the whole life of a network."""

import argparse
import contextlib
import importlib
import json
import math
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from ..files import writing

__all__ = ['COMMANDS', 'main']

#: Name of a command, which is that of its module, and what it does.
COMMANDS = {
    'train': 'train a network (tools/train.py, also by torchrun)',
    'retrain': 'train a wiring again, from scratch or on, edge weights frozen or not',
    'evaluate': 'loss and accuracy on a data set',
    'inspect': 'stages, edges, weights, costs, accuracy of a network',
    'prune': 'remove weak edges, and the nodes that die with them',
    'shrink': 'make a network faster: whole blocks go until a budget is met',
    'sweep': 'accuracy and size for thresholds on edge weights',
    'damage': 'accuracy over removed nodes and edges',
    'compare': 'several networks side by side, plain ones too',
    'routing': 'how images choose their edges',
    'plot': 'draw graphs, weights, training, data sets, likeness of networks',
    'report': 'one HTML page about a network',
    'export': 'ONNX, in eight bits too, or the graph as GraphML',
    'table': 'a table of a paper, trained: rows x seeds beside the printed numbers',
    'models': 'the networks of this package beside the numbers of the papers',
}
_EXAMPLES = """
examples:
  topo train -c configs/classification/toponet_tiny_digits.yaml
  topo inspect output/RUN --dataset digits
  topo prune output/RUN --fraction 0.5 -o pruned --dataset digits --recalibrate 10
  topo compare output/RUN pruned resnet18 --dataset digits
  topo report pruned -o report.html --dataset digits

A NETWORK is a saved network, the folder of a run, a file of weights, or a name that timm knows.
Every command takes --help, and --json for one JSON object on standard output.
Exit status: 0 done, 1 bad input or failure, 2 wrong usage, 130 interrupted.
"""
#: What a user can put right, told in one line; anything else is our bug and shows where.
_ERRORS = (FloatingPointError, ImportError, OSError, RuntimeError, TypeError, ValueError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments; those of the command line by default.

    Returns:
        The exit status.
    """
    listed = '\n'.join(f'  {name:9} {text}' for name, text in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog='topo',
        usage='%(prog)s COMMAND [NETWORK...] [options]',
        description='See and operate on networks whose connectivity is learned.\n\n'
        f'commands:\n{listed}',
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('command', choices=COMMANDS, metavar='COMMAND', help=argparse.SUPPRESS)
    rest = parser.add_argument('rest', nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    rest.required = False  # nobody shall read its name
    given = sys.argv[1:] if argv is None else list(argv)
    chosen = parser.parse_args(given or ['--help'])
    command = importlib.import_module(f'.{chosen.command}', __package__)
    as_json, args = _parse(command, chosen.command, chosen.rest)
    try:
        quiet = contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()
        with quiet:
            result = command.run(args)
        told = json.dumps(_plain(result), allow_nan=False) if as_json else _text(command, result)
        with writing('standard output'):
            if told:
                print(told, flush=True)
    except KeyboardInterrupt:
        hint = getattr(command, 'RESUMES', '')
        print(f'\ninterrupted{hint}', file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone
        _drop_output()
        return 1
    except _ERRORS as error:
        print('error:', *str(error).split(), file=sys.stderr)
        if getattr(error, 'filename', None) == 'standard output':
            _drop_output()
        return 1
    return 0


def _parse(command: ModuleType, name: str, argv: list[str]) -> tuple[bool, argparse.Namespace]:
    """Whether JSON is asked for, and the arguments of a command."""
    if hasattr(command, 'parse'):  # it reads its options itself
        return '--json' in argv, command.parse([one for one in argv if one != '--json'])
    own, training = _split(argv)
    parser = argparse.ArgumentParser(
        prog=f'topo {name}',
        description=command.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_options(parser)
    parser.add_argument('--json', action='store_true', help='print one JSON object, no text')
    args = parser.parse_intermixed_args(own)
    args.training = training
    if training is not None and not getattr(command, 'TRAINS', False):
        parser.error(f'nothing may follow --, got {" ".join(training)}')
    if getattr(args, 'data_dir', None) and args.dataset is None:
        args.dataset = ''  # a folder of class folders, as for training
    if getattr(args, 'needs_data', False) and args.dataset is None:
        parser.error('give data: --dataset NAME or --data-dir DIR')
    if hasattr(command, 'check'):
        command.check(parser, args)
    return args.json, args


def _text(command: ModuleType, result: dict) -> str:
    told = command.text(result) or ''
    written = ', '.join(map(str, result.get('written', ())))
    return '\n'.join([*([told] if told else []), *([f'written: {written}'] if written else [])])


def _drop_output() -> None:
    """Nothing is left for the flush at exit, which would fail as well."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _split(argv: Sequence[str]) -> tuple[list[str], list[str] | None]:
    """What is before ``--`` and, if there is one, what is behind."""
    if '--' not in argv:
        return list(argv), None
    at = argv.index('--')
    return list(argv[:at]), list(argv[at + 1 :])


def _plain(value):
    """A value as JSON has it: no tuples, paths or numbers that are not finite."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (bool, int, str, type(None))) else str(value)
