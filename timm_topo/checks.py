"""Checks of options: the value, or one error that names it and what is allowed."""

__all__ = ['check_flag', 'check_integer', 'check_probability']


def check_integer(name: str, value: int, least: int = 1, most: int | None = None) -> int:
    """``value``, if it is an integer from ``least`` to ``most``.

    Raises:
        ValueError: It is not.
    """
    integer = isinstance(value, int) and not isinstance(value, bool)
    if not integer or value < least or (most is not None and value > most):
        allowed = f'from {least} on' if most is None else f'in {least}..{most}'
        raise ValueError(f'{name} must be an integer {allowed}, got {value!r}')
    return value


def check_flag(name: str, value: bool) -> bool:
    """``value``, if it is True or False.

    Raises:
        TypeError: It is not.
    """
    if not isinstance(value, bool):
        raise TypeError(f'{name} must be True or False, got {value!r}')
    return value


def check_probability(name: str, value: float) -> float:
    """``value``, if it is in [0, 1].

    Raises:
        ValueError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f'{name} must be a probability in [0, 1], got {value!r}')
    return value
