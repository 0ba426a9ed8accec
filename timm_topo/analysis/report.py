"""One self-contained HTML page: no script, no external resource, readable on paper and phones."""

import os
import re
import tempfile
from collections.abc import Sequence
from html import escape
from pathlib import Path

from matplotlib.figure import Figure

from .plot import to_svg

__all__ = ['Report']

_CSS = """
:root { color-scheme: light dark; --page: #fbfbfa; --card: #fff; --ink: #1c1e21; --soft: #5a6068;
  --line: #dcdfe3; --strong: #0b5394; }
@media (prefers-color-scheme: dark) { :root { --page: #16181b; --card: #1f2226; --ink: #e8eaed;
  --soft: #a8afb8; --line: #383d44; --strong: #8ab8f0; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.6 system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.8rem; line-height: 1.25; margin: 0 0 1rem; }
h2 { font-size: 1.25rem; margin: 2.75rem 0 .75rem; padding-top: 1rem;
  border-top: 1px solid var(--line); }
p { max-width: 46rem; margin: .75rem 0; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem;
  margin: 1.5rem 0; }
dl div { background: var(--card); border: 1px solid var(--line); border-radius: .5rem;
  padding: .75rem 1rem; }
dt, .note { color: var(--soft); font-size: .85rem; }
dd { margin: 0; }
dd.value { color: var(--strong); font-size: 1.6rem; font-weight: 600; line-height: 1.3; }
figure { margin: 1.25rem 0; }
.card { background: #fff; border: 1px solid var(--line); border-radius: .5rem; padding: .75rem;
  overflow-x: auto; }
.card svg { display: block; max-width: 100%; height: auto; margin: 0 auto; }
figcaption, caption { color: var(--soft); font-size: .875rem; text-align: left; }
figcaption { margin-top: .5rem; max-width: 46rem; }
caption { caption-side: bottom; padding-top: .5rem; }
.table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .75rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child, tbody th { text-align: left; }
thead th { color: var(--soft); font-size: .85rem; font-weight: 600; vertical-align: bottom; }
tbody th { font-weight: 500; white-space: nowrap; }
@media (max-width: 40rem) { main { padding-top: 1.25rem; } h1 { font-size: 1.45rem; }
  .wide svg { min-width: 34rem; } }
@media print { body { background: #fff; } figure, .table { break-inside: avoid; } }
"""


class Report:
    """A page built top to bottom; every method adds one thing and takes plain text.

    Args:
        title: Heading of the page.
    """

    def __init__(self, title: str):
        self.title = title
        self._parts: list[str] = []
        self._figures = 0

    def section(self, heading: str) -> None:
        """A heading."""
        self._parts.append(f'<h2>{escape(heading)}</h2>')

    def text(self, text: str) -> None:
        """A paragraph."""
        self._parts.append(f'<p>{escape(text)}</p>')

    def facts(self, facts: Sequence[tuple[str, str, str]]) -> None:
        """Key figures in a row.

        Args:
            facts: Triples ``(label, value, note)``.
        """
        cards = ''.join(
            f'<div><dt>{escape(label)}</dt><dd class="value">{escape(str(value))}</dd>'
            f'<dd class="note">{escape(note)}</dd></div>'
            for label, value, note in facts
        )
        self._parts.append(f'<dl>{cards}</dl>')

    def table(self, headers: Sequence[str], rows: Sequence[Sequence], caption: str) -> None:
        """A table; the first column names the rows.

        Args:
            headers: One per column.
            rows: One cell per header, anything with ``str``.
            caption: What the numbers are.

        Raises:
            ValueError: A row with another number of cells.
        """
        for row in rows:
            if len(row) != len(headers):
                raise ValueError(f'row {list(row)} has {len(row)} cells for {len(headers)} headers')
        head = ''.join(f'<th scope="col">{escape(header)}</th>' for header in headers)
        body = ''.join(
            f'<tr><th scope="row">{escape(str(row[0]))}</th>'
            + ''.join(f'<td>{escape(str(cell))}</td>' for cell in row[1:])
            + '</tr>'
            for row in rows
        )
        self._parts.append(
            f'<div class="table" tabindex="0"><table><caption>{escape(caption)}</caption>'
            f'<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        )

    def figure(self, figure: Figure, caption: str, alt: str) -> None:
        """A drawing, as SVG in the page.

        Args:
            figure: As from :mod:`timm_topo.analysis.plot`.
            caption: Text below it.
            alt: What it shows, for those who cannot see it.
        """
        self._figures += 1
        wide = figure.get_size_inches()[0] > 6
        self._parts.append(
            f'<figure><div class="card{" wide" if wide else ""}" tabindex="0">'
            f'{_inline(to_svg(figure), self._figures, alt)}</div>'
            f'<figcaption>{escape(caption)}</figcaption></figure>'
        )

    def html(self) -> str:
        """The whole page."""
        title = escape(self.title)
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<title>{title}</title>\n<style>{_CSS}</style>\n</head>\n'
            f'<body>\n<main>\n<h1>{title}</h1>\n' + '\n'.join(self._parts) + '\n</main>\n'
            '</body>\n</html>\n'
        )

    def write(self, path: str | Path) -> Path:
        """Write the page; the file is there as a whole or not at all.

        Args:
            path: The ``.html`` file; parents are made.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        html = self.html()
        handle, scratch = tempfile.mkstemp(dir=path.parent, suffix='.html')
        try:
            with os.fdopen(handle, 'w', encoding='utf-8') as file:
                file.write(html)
            os.chmod(scratch, 0o644)
            os.replace(scratch, path)
        except BaseException:
            Path(scratch).unlink(missing_ok=True)
            raise
        return path


def _inline(svg: str, number: int, alt: str) -> str:
    """An SVG file as an element: no prolog, no metadata, ids that are unique in the page."""
    svg = svg[svg.index('<svg') :]
    svg = re.sub(r'<metadata>.*?</metadata>', '', svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', '', svg)
    for before, after in ((r'\bid="', f'id="f{number}-'), (r'url\(#', f'url(#f{number}-')):
        svg = re.sub(before, after, svg)
    svg = re.sub(r'(?:xlink:)?href="#', f'href="#f{number}-', svg)
    return svg.replace('<svg', f'<svg role="img" aria-label="{escape(alt, quote=True)}"', 1)
