"""Options of training as arguments of its command line."""

import ast
import dataclasses
from functools import lru_cache
from typing import Any

from .options import TrainingOptions, read_options

__all__ = ['arguments']


def arguments(options: TrainingOptions, config: str | None = None) -> list[str]:
    """What ``topo train`` takes for these options: those that differ from the config's.

    Args:
        options: Of the training.
        config: A YAML file; None: the defaults.

    Raises:
        ValueError: An option of the config is nothing here, which no argument says.

    >>> arguments(TrainingOptions(epochs=3, model_kwargs={'sparsity': 'none', 'num_nodes': [4, 5]}))
    ['--model-kwargs', 'sparsity=none', 'num_nodes=[4, 5]', '--epochs', '3']
    """
    base, argv = _options(config), ['-c', config] if config else []
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if value == getattr(base, field.name):
            continue
        flag = field.name.replace('_', '-')
        if value is None:
            raise ValueError(
                f'{config} has {field.name}, which no argument of topo train takes away'
            )
        if isinstance(value, bool):
            argv.append(f'--{flag}' if value else f'--no-{flag}')
        elif isinstance(value, dict):
            argv += [f'--{flag}', *(f'{name}={_text(one)}' for name, one in value.items())]
        elif isinstance(value, (list, tuple)):
            argv += [f'--{flag}', *map(str, value)]
        else:
            argv += [f'--{flag}', str(value)]
    return argv


@lru_cache
def _options(config: str | None) -> TrainingOptions:
    return TrainingOptions(**(read_options(config) if config else {}))


def _text(value: Any) -> str:
    """A value as ``K=V`` has it: text is text where it is no number, list or other literal."""
    if isinstance(value, str):
        try:
            ast.literal_eval(value)
        except ValueError:
            return value
        except SyntaxError:
            pass
    return repr(value)
