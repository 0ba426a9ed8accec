"""What networks return: logits, or maps in lists, tuples and dicts."""

from collections.abc import Mapping

from torch import Tensor

__all__ = ['named_outputs']


def named_outputs(output, name: str = '') -> dict[str, Tensor]:
    """The tensors that a network returned, by name.

    Args:
        output: A tensor, or lists, tuples and dicts of tensors.
        name: What stands before keys and numbers.

    Raises:
        TypeError: Something else is in it.

    >>> import torch
    >>> x = torch.zeros(1)
    >>> list(named_outputs(x)), list(named_outputs([x, x])), list(named_outputs({'p2': x}))
    (['logits'], ['map_0', 'map_1'], ['p2'])
    """
    if isinstance(output, Tensor):
        return {name or 'logits': output}
    if isinstance(output, Mapping):
        parts = {f'{name}_{key}' if name else str(key): part for key, part in output.items()}
    elif isinstance(output, (list, tuple)):
        parts = {f'{name or "map"}_{place}': part for place, part in enumerate(output)}
    else:
        kind = type(output).__name__
        raise TypeError(f'a network returns tensors, or lists and dicts of them, not {kind}')
    found = {}
    for own, part in parts.items():
        found |= named_outputs(part, own)
    return found
