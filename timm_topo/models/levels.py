"""Feature levels, as ``forward_intermediates`` of every timm model numbers them."""

from typing import List, Optional, Union

__all__ = ['take_indices']


def take_indices(count: int, indices: Optional[Union[int, List[int]]]) -> List[int]:
    """Levels counted from the start; scriptable.

    Args:
        count: Number of levels.
        indices: All (None), the last n (int), or a list, negative from the end.

    Raises:
        ValueError: A level that does not exist.
    """
    if indices is None:
        indices = count
    taken: List[int] = []
    if isinstance(indices, int):
        if not 0 < indices <= count:
            raise ValueError(f'the last n={indices} levels of {count} do not exist')
        for level in range(count - indices, count):
            taken.append(level)
    else:
        for level in indices:
            if not -count <= level < count:
                raise ValueError(f'level {level} is out of range for {count} levels')
            taken.append(level % count)
    return taken
