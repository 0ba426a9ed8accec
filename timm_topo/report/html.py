"""One self-contained HTML page: no script, no external resource, readable on paper and phones."""

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from ..extras import needs
from ..files import write_text
from ..plot import to_svg

with needs('timm-topo[analysis]'):
    from matplotlib.figure import Figure

__all__ = ['Report']

_CSS = """
:root { color-scheme: light dark; --page: #fbfbfa; --box: #fff; --card: #fff; --ink: #1c1e21;
  --soft: #5a6068; --line: #dcdfe3; --strong: #0b5394; }
@media screen and (prefers-color-scheme: dark) { :root { --page: #16181b; --box: #1f2226;
  --card: #f1f2f4; --ink: #e8eaed; --soft: #a8afb8; --line: #383d44; --strong: #8ab8f0; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink); overflow-wrap: break-word;
  font: 16px/1.6 system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 2rem; line-height: 1.2; letter-spacing: -.01em; margin: 0 0 1rem; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 3rem 0 .75rem; padding-top: 1.25rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
p { max-width: 44rem; margin: .75rem 0; }
a { color: var(--strong); text-underline-offset: .15em; }
:focus-visible { outline: 2px solid var(--strong); outline-offset: 2px; }
nav ol { display: flex; flex-wrap: wrap; gap: .25rem 1.5rem; margin: 1.5rem 0 0; padding: 0;
  list-style: none; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .75rem;
  margin: 1.5rem 0; }
dl div { background: var(--box); border: 1px solid var(--line); border-radius: .5rem;
  padding: .75rem 1rem; }
dt, .note { color: var(--soft); font-size: .85rem; line-height: 1.45; }
dd { margin: 0; }
.value { color: var(--strong); font-size: 1.6rem; font-weight: 600; line-height: 1.35; }
pre { background: var(--box); border: 1px solid var(--line); border-radius: .5rem;
  padding: .75rem 1rem; overflow-x: auto; font: .875rem/1.5 ui-monospace, Menlo, Consolas,
  'DejaVu Sans Mono', monospace; }
figure { margin: 1.5rem 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .5rem;
  padding: .75rem; overflow-x: auto; }
.card svg { display: block; max-width: 100%; min-width: var(--least); height: auto; margin: 0 auto;
  stroke-linejoin: round; stroke-linecap: butt; }
figcaption, caption { color: var(--soft); font-size: .875rem; line-height: 1.5; text-align: left; }
figcaption { margin-top: .5rem; max-width: 44rem; }
caption { padding-bottom: .5rem; }
.table { overflow-x: auto; margin: 1.25rem 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .75rem; border-bottom: 1px solid var(--line); text-align: left; }
thead th { color: var(--soft); font-size: .85rem; font-weight: 600; line-height: 1.35;
  vertical-align: bottom; }
tbody th { font-weight: 500; position: sticky; left: 0; background: var(--page); }
.number { text-align: right; }
td.number { white-space: nowrap; }
@media (max-width: 40rem) { main { padding: 1.5rem 1rem 3rem; } h1 { font-size: 1.5rem; }
  dl { grid-template-columns: 1fr 1fr; } .value { font-size: 1.3rem; }
  tbody th { min-width: 7.5rem; } caption span { position: sticky; left: 0;
  display: inline-block; max-width: calc(100vw - 2rem); } }
@media print { body { background: none; font-size: 11pt; } main { max-width: none; padding: 0; }
  nav { display: none; } tbody th { position: static; background: none; }
  h2, h3, caption { break-after: avoid; }
  figure, tr, dl div { break-inside: avoid; } .card, .table { overflow: visible; } }
"""
#: What a browser may load for this page: nothing but what is in it.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
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
        self._parts: list[str] = []
        self._sections: list[str] = []
        self._start = 0  # where the first section starts
        self._figures = 0

    def section(self, heading: str) -> None:
        """A heading; from three on, links to all are shown above the first."""
        if not self._sections:
            self._start = len(self._parts)
        self._sections.append(_given('heading', heading))
        self._parts.append(f'<h2 id="section-{len(self._sections)}">{escape(heading)}</h2>')

    def subsection(self, heading: str) -> None:
        """A heading inside a section.

        Raises:
            ValueError: There is no section yet.
        """
        if not self._sections:
            raise ValueError(f'subsection {heading!r} needs a section before it')
        self._parts.append(f'<h3>{escape(_given("heading", heading))}</h3>')

    def text(self, text: str) -> None:
        """A paragraph."""
        self._parts.append(f'<p>{escape(text)}</p>')

    def code(self, text: str) -> None:
        """Commands or output, as they are."""
        self._parts.append(f'<pre tabindex="0"><code>{escape(text)}</code></pre>')

    def facts(self, facts: Sequence[tuple[str, str, str]]) -> None:
        """Key figures in a row.

        Args:
            facts: Triples ``(label, value, note)``.

        Raises:
            ValueError: There is none.
        """
        if not facts:
            raise ValueError('facts needs at least one (label, value, note), got none')
        cards = ''.join(
            f'<div><dt>{escape(label)}</dt><dd class="value">{escape(str(value))}</dd>'
            f'<dd class="note">{escape(note)}</dd></div>'
            for label, value, note in facts
        )
        self._parts.append(f'<dl>{cards}</dl>')

    def table(self, headers: Sequence[str], rows: Sequence[Sequence], caption: str) -> None:
        """A table; the first column names the rows, columns of numbers are aligned right.

        Args:
            headers: One per column.
            rows: One cell per header, anything with ``str``; None is a dash.
            caption: What the numbers are.

        Raises:
            ValueError: No headers, no caption, or a row with another number of cells.
        """
        if not headers:
            raise ValueError('a table needs at least one header, got none')
        for row in rows:
            if len(row) != len(headers):
                raise ValueError(f'row {list(row)} has {len(row)} cells for {len(headers)} headers')
        cells = [['\u2013' if cell is None else str(cell) for cell in row] for row in rows]
        kinds = [''] + [
            ' class="number"' if _is_numeric(column) else '' for column in list(zip(*cells))[1:]
        ]
        kinds += [''] * (len(headers) - len(kinds))
        head = ''.join(
            f'<th scope="col"{kind}>{escape(str(header))}</th>'
            for kind, header in zip(kinds, headers)
        )
        body = ''.join(
            f'<tr><th scope="row">{escape(row[0])}</th>'
            + ''.join(f'<td{kind}>{escape(cell)}</td>' for kind, cell in zip(kinds[1:], row[1:]))
            + '</tr>\n'
            for row in cells
        )
        label = escape(_given('caption', caption))
        self._parts.append(
            f'<div class="table" role="region" aria-label="{label}" tabindex="0">\n<table>'
            f'<caption><span>{label}</span></caption>\n<thead><tr>{head}</tr></thead>\n'
            f'<tbody>\n{body}</tbody></table>\n</div>'
        )

    def figure(self, figure: Figure, caption: str, alt: str) -> None:
        """A drawing, as SVG in the page.

        Args:
            figure: As from :mod:`timm_topo.plot`.
            caption: Text below it.
            alt: What it shows, for those who cannot see it.

        Raises:
            ValueError: No caption or no alt.
        """
        caption, alt = _given('caption', caption), _given('alt', alt)
        self._figures += 1
        least = round(_PIXELS * figure.get_figwidth())
        self._parts.append(
            f'<figure>\n<div class="card" style="--least: {least}px" tabindex="0">\n'
            f'{_inline(to_svg(figure), self._figures, alt)}</div>\n'
            f'<figcaption>{escape(caption)}</figcaption>\n</figure>'
        )

    def html(self) -> str:
        """The whole page."""
        title = escape(self.title)
        parts = list(self._parts)
        if len(self._sections) >= 3:
            parts.insert(self._start, self._contents())
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
            f'<title>{title}</title>\n<style>{_CSS}</style>\n</head>\n'
            f'<body>\n<main>\n<h1>{title}</h1>\n' + '\n'.join(parts) + '\n</main>\n'
            '</body>\n</html>\n'
        )

    def _contents(self) -> str:
        links = ''.join(
            f'<li><a href="#section-{i}">{escape(heading)}</a></li>'
            for i, heading in enumerate(self._sections, start=1)
        )
        return f'<nav aria-label="Contents"><ol>{links}</ol></nav>'

    def write(self, path: str | Path) -> Path:
        """Write the page; the file is there as a whole or not at all.

        Args:
            path: The ``.html`` file; parents are made.
        """
        write_text(path, self.html())
        return Path(path)


def _inline(svg: str, number: int, alt: str) -> str:
    """An SVG file as an element: no prolog, no style sheet, ids that are unique in the page."""
    svg = svg[svg.index('<svg') :]
    svg = re.sub(r'<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->', '', svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', '', svg)
    svg = re.sub(r'\bid="', f'id="f{number}-', svg)
    svg = re.sub(r'url\(#', f'url(#f{number}-', svg)
    svg = re.sub(r'(?:xlink:)?href="#', f'href="#f{number}-', svg)
    svg = re.sub(r'\n\s*(?=\n)', '', svg)
    return svg.replace('<svg', f'<svg role="img" aria-label="{escape(alt)}"', 1)


def _is_numeric(cells: Sequence[str]) -> bool:
    values = [cell for cell in cells if cell not in _NO_VALUE]
    return bool(values) and all(_NUMBER.fullmatch(value) for value in values)


def _given(what: str, text: str) -> str:
    if not text.strip():
        raise ValueError(f'{what} must not be empty, got {text!r}')
    return text
