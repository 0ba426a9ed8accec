"""Feature levels, as ``forward_intermediates`` of every timm model numbers them."""

__all__ = ['take_indices']


def take_indices(count: int, indices: int | list[int] | None) -> list[int]:
    """Levels counted from the start.

    Args:
        count: Number of levels.
        indices: All (None), the last n (int), or a list, negative from the end.

    Raises:
        ValueError: A level that does not exist.
    """
    if indices is None:
        indices = count
    if isinstance(indices, int):
        if not 0 < indices <= count:
            raise ValueError(f'the last n={indices} levels of {count} do not exist')
        return list(range(count - indices, count))
    for level in indices:
        if not -count <= level < count:
            raise ValueError(f'level {level} is out of range for {count} levels')
    return [level % count for level in indices]
