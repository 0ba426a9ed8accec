"""Checks of options: the value, or one error that names it and what is allowed."""

__all__ = ['check_flag', 'check_integer', 'check_number', 'check_probability', 'one_line']


def check_integer(name: str, value: int, least: int | None = 1) -> int:
    """``value``, if it is an integer from ``least`` on (None: any).

    Raises:
        ValueError: It is not.
    """
    integer = isinstance(value, int) and not isinstance(value, bool)
    if not integer or (least is not None and value < least):
        allowed = '' if least is None else f' from {least} on'
        raise ValueError(f'{name} must be an integer{allowed}, got {value!r}')
    return value


def check_number(name: str, value: float) -> float:
    """``value`` as a float, if it is a number.

    Raises:
        TypeError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f'{name} must be a number, got {value!r}')
    return float(value)


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


def one_line(error: object, most: int = 300) -> str:
    """The text of an error or a message, on one line of at most ``most`` characters."""
    return ' '.join(str(error).split())[:most]
