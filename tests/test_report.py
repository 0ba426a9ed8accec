"""The page is one file that needs nothing else, says what it was given, and is written whole."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from timm_topo import plot
from timm_topo.generators import complete
from timm_topo.report.html import Report

ROOT = Path(__file__).parents[1]
HOSTILE = '<script>alert("1")</script> & \'more\' --> ]]>'
VOID = {'meta', 'link', 'br', 'img', 'hr', 'input'}


class Page(HTMLParser):
    """Elements with their attributes and text; refuses unbalanced tags."""

    def __init__(self, html: str):
        super().__init__(convert_charrefs=True)
        self.open, self.elements = [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, names)
        self.elements.append((tag, dict(attrs), []))
        if tag not in VOID:
            self.open.append(self.elements[-1])

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), []))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for _, _, text in self.open:
            text.append(data)

    def all(self, *tags: str) -> list[dict]:
        return [attrs for tag, attrs, _ in self.elements if tag in tags]

    def texts(self, *tags: str) -> list[str]:
        return [''.join(text) for tag, _, text in self.elements if tag in tags]


def figure(title: str = 'a', width: float = 5) -> Figure:
    fig = plot.graph(complete(4), [1.0, -0.5, 0.2, 0.3, 0.0, 1.0], title=title)
    fig.set_figwidth(width)
    return fig


def full_page(text: str = 'words') -> Report:
    page = Report(text)
    page.text(text)
    page.facts([(text, text, text), ('edges', 12, 'of 28')])
    for i in range(3):
        page.section(f'{text} {i}')
        page.subsection(text)
        page.code(text)
        page.table([text, 'edges'], [[text, 12], ['b', text]], caption=text)
        page.figure(figure(text), caption=text, alt=text)
        panels = [plot.Panel(text, complete(4), [1.0, -0.5, 0.2, 0.3, 0.0, 1.0])]
        page.figure(plot.adjacency(panels), caption=text, alt=text)
    return page


@pytest.fixture(scope='module')
def html() -> str:
    return full_page().html()


@pytest.fixture(scope='module')
def hostile_html() -> str:
    return full_page(HOSTILE).html()


# -- self-contained -------------------------------------------------------------------------------


@pytest.mark.parametrize('page', ['html', 'hostile_html'])
def test_page_names_no_address_outside_itself(page, request):
    html = request.getfixturevalue(page)
    assert '://' not in html
    assert '@import' not in html
    for tag, attrs, _ in Page(html).elements:
        for name in ('src', 'href', 'xlink:href', 'data', 'action', 'poster', 'srcset'):
            assert attrs.get(name, '#').startswith(('#', 'data:image/png;')), (tag, attrs)
    assert all(url.startswith('#') for url in re.findall(r'url\(["\']?([^)]*)\)', html))


def test_page_has_no_script_and_forbids_loading(html):
    page = Page(html)
    assert page.all('script', 'iframe', 'object', 'embed', 'link') == []
    assert not any(name.startswith('on') for _, attrs, _ in page.elements for name in attrs)
    (policy,) = [m['content'] for m in page.all('meta') if 'http-equiv' in m]
    assert "default-src 'none'" in policy


def test_page_with_the_figures_of_four_large_stages_stays_below_three_megabytes():
    page = Report('large')
    for n in (14, 20, 26, 14):
        weights = [1.0] * complete(n).num_edges
        page.figure(plot.graph(complete(n), weights), caption='graph', alt='graph')
        panel = plot.Panel('a', complete(n), weights)
        page.figure(plot.adjacency([panel]), caption='matrix', alt='matrix')
    assert len(page.html().encode()) < 3_000_000


def data_files(folder: Path) -> set[Path]:
    files = (folder / 'timm_topo').rglob('*')
    found = {path.relative_to(folder) for path in files if path.is_file()}
    return {path for path in found if path.suffix not in ('.py', '.pyc')}


def test_templates_are_installed_with_the_package(tmp_path):
    command = [sys.executable, 'setup.py', '-q', 'build_py', '--build-lib', str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert data_files(tmp_path) == data_files(ROOT)
    assert Path('timm_topo/report/templates/page.html') in data_files(tmp_path)


# -- well-formed ----------------------------------------------------------------------------------


def test_every_text_is_escaped(hostile_html):
    page = Page(hostile_html)  # balanced
    assert page.all('script') == []
    for tag in ('title', 'h1', 'p', 'h3', 'dt', 'code', 'caption', 'figcaption'):
        assert set(page.texts(tag)) >= {HOSTILE}, tag
    assert {svg['aria-label'] for svg in page.all('svg')} == {HOSTILE}
    assert HOSTILE in page.texts('td')
    assert HOSTILE in page.texts('th')


def test_ids_are_unique_and_every_reference_has_its_target(html):
    page = Page(html)
    ids = [attrs['id'] for _, attrs, _ in page.elements if 'id' in attrs]
    assert len(ids) == len(set(ids))
    used = re.findall(r'(?:href="|url\()#([^")]*)', html)
    assert len(used) > 50
    assert set(used) <= set(ids)


def test_styles_of_a_figure_stay_out_of_the_page(html):
    assert len(Page(html).all('style')) == 1


def test_figures_have_a_text_for_those_who_cannot_see_them(html):
    svgs = Page(html).all('svg')
    assert len(svgs) == 6
    assert all(svg['role'] == 'img' and svg['aria-label'] for svg in svgs)


def test_headings_descend_one_level_at_a_time(html):
    page = Page(html)
    levels = [int(tag[1]) for tag, _, _ in page.elements if re.fullmatch(r'h\d', tag)]
    assert levels == [1, 2, 3, 2, 3, 2, 3]
    assert page.all('html') == [{'lang': 'en'}]
    assert len(page.all('main')) == 1


def test_tables_have_scopes_and_captions(html):
    page = Page(html)
    assert len(page.texts('caption')) == len(page.all('table')) == 3
    assert [th['scope'] for th in page.all('th')] == ['col', 'col', 'row', 'row'] * 3


def test_what_is_wide_scrolls_by_itself(html):
    page = Page(html)
    scrolling = [a for a in page.all('div', 'pre') if a.get('tabindex') == '0']
    assert len(scrolling) == 3 + 3 + 6  # tables, code, figures
    assert any('width=device-width' in meta.get('content', '') for meta in page.all('meta'))
    for rule in ('.table { overflow-x: auto', 'max-width: 100%'):
        assert rule in html


def test_page_has_rules_for_dark_screens_phones_and_paper(html):
    for rule in ('screen and (prefers-color-scheme: dark)', '(max-width: 40rem)', 'print'):
        assert f'@media {rule}' in html


# -- content --------------------------------------------------------------------------------------


def test_facts_show_label_value_and_note():
    page = Report('a')
    page.facts([('edges', 12, 'of 28')])
    parsed = Page(page.html())
    assert parsed.texts('dt') == ['edges']
    assert parsed.texts('dd') == ['12', 'of 28']


def test_table_shows_every_cell_in_place():
    page = Report('a')
    page.table(['network', 'edges', 'ms'], [['x', 12, 1.5], ['y', None, 2]], caption='c')
    parsed = Page(page.html())
    assert parsed.texts('th') == ['network', 'edges', 'ms', 'x', 'y']
    assert parsed.texts('td') == ['12', '1.5', '\u2013', '2']


@pytest.mark.parametrize(
    ('cells', 'right'),
    [
        (['1', '-2.5', '\u22123', '1,234', '98.5%', '4.1 ms', '0.61 x', '1e-05'], True),
        ([1, 2.5, None], True),
        (['complete', 'learned'], False),
        (['1', 'two'], False),
        ([None, None], False),
    ],
)
def test_table_aligns_a_column_right_if_all_of_it_is_numbers(cells, right):
    page = Report('a')
    page.table(['name', 'value'], [['x', cell] for cell in cells], caption='c')
    parsed = Page(page.html())
    classes = [td.get('class') for td in parsed.all('td')] + [parsed.all('th')[1].get('class')]
    assert set(classes) == {'number' if right else None}


def test_table_without_rows_keeps_its_headers():
    page = Report('a')
    page.table(['name', 'value'], [], caption='nothing yet')
    assert Page(page.html()).texts('th') == ['name', 'value']


def test_parts_keep_their_order(html):
    tags = [tag for tag, _, _ in Page(html).elements]
    shown = [tag for tag in tags if tag in ('h1', 'p', 'dl', 'nav', 'h2', 'table', 'figure')]
    assert shown == ['h1', 'p', 'dl', 'nav', *['h2', 'table', 'figure', 'figure'] * 3]


def test_contents_link_to_all_sections_from_three_on():
    page = Report('a')
    page.section('one')
    page.section('two')
    assert Page(page.html()).all('nav') == []
    page.section('three')
    parsed = Page(page.html())
    assert parsed.all('nav') == Page(page.html()).all('nav') == [{'aria-label': 'Contents'}]
    assert parsed.texts('a') == parsed.texts('h2') == ['one', 'two', 'three']
    assert [a['href'] for a in parsed.all('a')] == [f'#{h2["id"]}' for h2 in parsed.all('h2')]


def test_large_figures_keep_a_legible_width():
    page = Report('a')
    page.figure(figure(width=5), caption='c', alt='small')
    page.figure(figure(width=10), caption='c', alt='large')
    assert re.findall(r'--least: (\d+)px', page.html()) == ['300', '600']


def test_the_same_input_gives_the_same_bytes(tmp_path):
    first = full_page().write(tmp_path / 'a.html').read_bytes()
    assert full_page().write(tmp_path / 'b.html').read_bytes() == first


# -- writing --------------------------------------------------------------------------------------


def test_write_makes_folders_and_returns_the_path(tmp_path):
    path = tmp_path / 'new' / 'folder' / 'report.html'
    page = Report('caf\u00e9 \u2013 \u0394')
    assert page.write(str(path)) == path
    assert path.read_text(encoding='utf-8') == page.html()
    assert os.listdir(path.parent) == ['report.html']


def test_written_page_can_be_read_by_others(tmp_path):
    path = Report('a').write(tmp_path / 'report.html')
    assert path.stat().st_mode & 0o777 == 0o644


def test_write_replaces_an_older_page(tmp_path):
    path = tmp_path / 'report.html'
    path.write_text('old')
    Report('new').write(path)
    assert 'new' in path.read_text()


def test_a_failed_write_leaves_the_old_page_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / 'report.html'
    path.write_text('old')

    def fail(*args, **kwargs):
        raise OSError('disk full')

    monkeypatch.setattr(os, 'replace', fail)
    with pytest.raises(OSError, match='disk full'):
        Report('new').write(path)
    assert os.listdir(tmp_path) == ['report.html']
    assert path.read_text() == 'old'


def test_text_that_is_not_unicode_leaves_the_old_page(tmp_path):
    path = tmp_path / 'report.html'
    path.write_text('old')
    with pytest.raises(UnicodeEncodeError, match='surrogates not allowed'):
        Report('\ud800').write(path)
    assert os.listdir(tmp_path) == ['report.html']
    assert path.read_text() == 'old'


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('add', 'message'),
    [
        (lambda page: Report(' '), "title must not be empty, got ' '"),
        (lambda page: page.section(''), 'heading must not be empty'),
        (lambda page: page.subsection('a'), "subsection 'a' needs a section before it"),
        (lambda page: page.facts([]), 'at least one .*, got none'),
        (lambda page: page.table([], [], 'c'), 'at least one header, got none'),
        (lambda page: page.table(['a'], [[1]], ''), 'caption must not be empty'),
        (lambda page: page.table(['a', 'b'], [[1]], 'c'), r'row \[1\] has 1 cells for 2 headers'),
        (lambda page: page.figure(figure(), caption='', alt='a'), 'caption must not be empty'),
        (lambda page: page.figure(figure(), caption='c', alt=''), 'alt must not be empty'),
    ],
)
def test_what_is_missing_is_refused_by_name(add, message):
    page = Report('a')
    before = page.html()
    with pytest.raises(ValueError, match=message):
        add(page)
    assert page.html() == before
    page.text('what follows')
    assert '<p>what follows</p>' in page.html()
