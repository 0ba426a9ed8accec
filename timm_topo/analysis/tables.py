"""Rows of numbers: CSV files that are never half written, means over networks, text."""

import csv
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..files import replacing

__all__ = [
    'group', 'markdown_table', 'mean_and_spread', 'read_csv', 'read_numbers', 'text_table',
    'write_csv',
]  # fmt: skip


def write_csv(path: str | Path, rows: Sequence[Mapping]) -> Path:
    """Write rows, with all their columns in the order of appearance; a missing value is empty."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with replacing(path) as part, open(part, 'w', encoding='utf-8', newline='') as file:
        writer = csv.DictWriter(file, columns, lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)
    return Path(path)


def read_csv(path: str | Path) -> list[dict[str, str]]:
    """Rows as text.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A row is cut short.
    """
    with open(path, encoding='utf-8', newline='') as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise ValueError(f'{path}, line {number}: {len(row)} columns in the head, not here')
    return rows


def read_numbers(path: str | Path) -> list[dict]:
    """Rows of :func:`read_csv` with numbers as numbers, and without what is empty."""
    return [
        {column: _number(value) for column, value in row.items() if value != ''}
        for row in read_csv(path)
    ]


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def group(rows: Sequence[Mapping], column: str) -> dict[str, list[Mapping]]:
    """Rows by the value of a column, in order of appearance."""
    groups = {}
    for row in rows:
        groups.setdefault(row[column], []).append(row)
    return groups


def mean_and_spread(values: Sequence[float], digits: int = 2) -> str:
    """``'1.50 +- 0.71'``: mean and standard deviation of the sample; of one value itself.

    >>> mean_and_spread([1, 2]), mean_and_spread([3.14159], digits=3)
    ('1.50 ± 0.71', '3.142')
    """
    mean = statistics.fmean(values)
    if len(values) == 1:
        return f'{mean:.{digits}f}'
    return f'{mean:.{digits}f} ± {statistics.stdev(values):.{digits}f}'


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text, the first to the left, the others to the right."""
    table = [list(map(str, row)) for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*table)]
    return '\n'.join(
        '  '.join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in table
    )


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown.

    >>> print(markdown_table(['row', 'top-1'], [['plain', '69.01']]))
    | row | top-1 |
    | --- | --- |
    | plain | 69.01 |
    """
    lines = [head, ['---'] * len(head), *rows]
    return '\n'.join(f'| {" | ".join(map(str, line))} |' for line in lines)
