"""One self-contained HTML page: no script, no external resource, readable on paper and phones."""

import re
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ..extras import needs
from ..files import write_text
from ..plot import to_svg

with needs('timm-topo[analysis]'):
    from matplotlib.figure import Figure

__all__ = ['Report']

_TEMPLATES = Environment(
    loader=PackageLoader('timm_topo.report'),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_PARTS = _TEMPLATES.get_template('parts.html').module
_PIXELS = 60  # per inch of a figure at least: on a phone, larger figures scroll
_NUMBER = re.compile(r'[+\-\u2212]?[\d.,]+(e[+-]?\d+)?\s*(%|x|ms|s|[kMG]|[kMG]?B)?')
_NO_VALUE = ('', '-', '\u2013', '\u2014')


class Report:
    """A page built top to bottom; every method adds one thing and takes plain text.

    Args:
        title: Heading of the page.

    >>> page = Report('A & B')
    >>> page.section('First')
    >>> page.table(['network', 'edges'], [['A', 28], ['B', 12]], caption='Edges that are left.')
    >>> '<h1>A &amp; B</h1>' in page.html()
    True
    """

    def __init__(self, title: str):
        self.title = _given('title', title)
        self._intro: list[Markup] = []
        self._sections: list[tuple[str, list[Markup]]] = []
        self._parts = self._intro  # where the next part goes
        self._figures = 0

    def section(self, heading: str) -> None:
        """A heading; from three on, links to all are shown above the first."""
        self._sections.append((_given('heading', heading), []))
        self._parts = self._sections[-1][1]

    def subsection(self, heading: str) -> None:
        """A heading inside a section.

        Raises:
            ValueError: There is no section yet.
        """
        if not self._sections:
            raise ValueError(f'subsection {heading!r} needs a section before it')
        self._parts.append(_PARTS.subsection(_given('heading', heading)))

    def text(self, text: str) -> None:
        """A paragraph."""
        self._parts.append(_PARTS.text(text))

    def code(self, text: str) -> None:
        """Commands or output, as they are."""
        self._parts.append(_PARTS.code(text))

    def facts(self, facts: Sequence[tuple[str, str, str]]) -> None:
        """Key figures in a row.

        Args:
            facts: Triples ``(label, value, note)``.

        Raises:
            ValueError: There is none.
        """
        if not facts:
            raise ValueError('facts needs at least one (label, value, note), got none')
        self._parts.append(_PARTS.facts(facts))

    def table(self, headers: Sequence[str], rows: Sequence[Sequence], caption: str) -> None:
        """A table; the first column names the rows, columns of numbers are aligned right.

        Args:
            headers: One per column.
            rows: One cell per header, anything with ``str``; None is a dash.
            caption: Meaning of the numbers.

        Raises:
            ValueError: No headers, no caption, or a row with another number of cells.
        """
        if not headers:
            raise ValueError('a table needs at least one header, got none')
        for row in rows:
            if len(row) != len(headers):
                raise ValueError(f'row {list(row)} has {len(row)} cells for {len(headers)} headers')
        cells = [['\u2013' if cell is None else str(cell) for cell in row] for row in rows]
        numeric = [i > 0 and _is_numeric([row[i] for row in cells]) for i in range(len(headers))]
        self._parts.append(_PARTS.table(headers, cells, _given('caption', caption), numeric))

    def figure(self, figure: Figure, caption: str, alt: str) -> None:
        """A drawing, as SVG in the page.

        Args:
            figure: As from :mod:`timm_topo.plot`.
            caption: Text below it.
            alt: Description, for those who cannot see it.

        Raises:
            ValueError: No caption or no alt.
        """
        caption, alt = _given('caption', caption), _given('alt', alt)
        self._figures += 1
        svg = _inline(to_svg(figure), self._figures, alt)
        least = round(_PIXELS * figure.get_figwidth())
        self._parts.append(_PARTS.figure(svg, caption, least))

    def html(self) -> str:
        """The whole page."""
        page = _TEMPLATES.get_template('page.html')
        return page.render(title=self.title, intro=self._intro, sections=self._sections)

    def write(self, path: str | Path) -> Path:
        """Write the page; the file is there as a whole or not at all.

        Args:
            path: The ``.html`` file; parents are made.
        """
        write_text(path, self.html())
        return Path(path)


def _inline(svg: str, number: int, alt: str) -> Markup:
    """An SVG file as an element: no prolog, no style sheet, ids that are unique in the page."""
    svg = svg[svg.index('<svg') :]
    svg = re.sub(r'<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->', '', svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', '', svg)
    svg = re.sub(r'\bid="', f'id="f{number}-', svg)
    svg = re.sub(r'url\(#', f'url(#f{number}-', svg)
    svg = re.sub(r'(?:xlink:)?href="#', f'href="#f{number}-', svg)
    svg = re.sub(r'\n\s*(?=\n)', '', svg)
    start = Markup('<svg role="img" aria-label="{}"').format(alt)
    return start + Markup(svg.removeprefix('<svg'))


def _is_numeric(cells: Sequence[str]) -> bool:
    values = [cell for cell in cells if cell not in _NO_VALUE]
    return bool(values) and all(_NUMBER.fullmatch(value) for value in values)


def _given(what: str, text: str) -> str:
    if not text.strip():
        raise ValueError(f'{what} must not be empty, got {text!r}')
    return text
