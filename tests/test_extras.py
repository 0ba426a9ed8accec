"""Without one package of an extra: what does not need it works, the rest says what to install."""

import ast
import contextlib
import importlib.util
import io
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOLS = sorted(path.stem for path in (ROOT / 'tools').glob('*.py'))
INSTALL_PAGE = 'https://detectron2.readthedocs.io/tutorials/install.html'
SETUP = (ROOT / 'setup.py').read_text(encoding='utf-8')
EXTRAS = ast.literal_eval(re.search(r'^EXTRAS = (\{.*?^\})', SETUP, re.M | re.S)[1])
MODULES = {'scikit-learn': 'sklearn'}  # of packages with another name
PACKAGES = sorted({MODULES.get(name, name) for extra in EXTRAS.values() for name in extra})
DIGITS = {'sklearn': 'train', 'scipy': 'train'}
ANALYSIS = {'fvcore': 'analysis', 'sklearn': 'analysis', 'scipy': 'analysis'}

#: Modules that a command needs, and the extra that its error names; it runs without all others.
NEEDS = {
    'topo compare net --repeats 1': ANALYSIS,
    'topo export net -o x.graphml': {},
    'topo inspect net': {'fvcore': 'analysis'},
    'topo inspect net --characteristics': ANALYSIS,
    'topo inspect net --dataset digits': {'fvcore': 'analysis', **DIGITS},
    'topo plot graph net -o x.svg': {'matplotlib': 'analysis'},
    'topo plot images digits -o x.png': {'matplotlib': 'analysis', **DIGITS},
    'topo evaluate net --dataset digits': DIGITS,
    'topo models test_toponet': {'fvcore': 'analysis'},
    'topo routing routed --dataset digits': DIGITS,
    'topo sweep net --dataset digits --thresholds 0': DIGITS,
    'topo prune net --fraction 0.1 -o x': {'fvcore': 'analysis'},
    'benchmark test_toponet --batch-size 1 --repeats 1': {},
}
#: The same of commands that take long, or that need the work of such: they are only seen to fail.
LONG = {
    'topo damage net -o x --dataset digits': {'matplotlib': 'analysis'},
    'topo export net -o x.onnx': dict.fromkeys(EXTRAS['export'], 'export'),
    'topo export net -o x.onnx --int8 --dataset digits': {
        **DIGITS,
        **dict.fromkeys(EXTRAS['export'], 'export'),
    },
    'topo prune routed --fraction 0.1 -o x --dataset digits --recalibrate 1': {
        'fvcore': 'analysis'
    },
    'topo report net -o x.html': {'matplotlib': 'analysis'},
    'topo retrain net -o x --snapshots': {'matplotlib': 'analysis'},
    'topo plot similarity net -o x.svg': {'matplotlib': 'analysis'},
    'demo --output x': {'matplotlib': 'analysis'},
    'topo routing routed --dataset digits --figure x.svg': {'matplotlib': 'analysis'},
    f'topo table {ROOT}/configs/tables/janik_nowak_digits.yaml -o x': {
        'fvcore': 'analysis',
        'matplotlib': 'analysis',
    },
    'topo sweep net --dataset digits --figure x.svg': {'matplotlib': 'analysis'},
    'train --model test_toponet --dataset digits --epochs 1': {'tensorboard': 'train'},
}


class Without:
    """A finder of modules that does not find one package."""

    def __init__(self, finder, package: str):
        self.finder, self.package = finder, package

    def __getattr__(self, name: str):
        return getattr(self.finder, name)

    def find_spec(self, name: str, *where):
        if name.partition('.')[0] == self.package:
            return None
        return self.finder.find_spec(name, *where)


def run(command: str) -> tuple[int, str, str]:
    """Exit status, standard output and error of ``topo`` or a tool, in this process."""
    from timm_topo.cli import main

    name, *args = shlex.split(command)
    sys.argv = [f'{name}.py', *args]
    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            if name == 'topo':
                status = main(args)
            else:
                runpy.run_path(str(ROOT / 'tools' / f'{name}.py'), run_name='__main__')
        except SystemExit as stop:  # as the interpreter does it
            status = stop.code or 0
            if isinstance(status, str):
                print(status, file=sys.stderr)
                status = 1
    return status, out.getvalue(), err.getvalue()


def check(hidden: str) -> None:
    """All that is checked without a package, in a process of its own and an empty folder."""
    sys.meta_path[:] = [Without(finder, hidden) for finder in sys.meta_path]
    import timm

    import timm_topo
    from timm_topo.cli import COMMANDS

    assert not {'detectron2', *PACKAGES} & set(sys.modules)
    error = ''
    try:
        import d2_topo  # noqa: F401
    except ImportError as missing:
        error = str(missing)
    if importlib.util.find_spec('detectron2') is None:
        assert error == (
            f'd2_topo needs detectron2, which is not installed; how to install it: {INSTALL_PAGE}'
        )
    elif error:
        assert error == f"No module named '{hidden}': pip install timm-topo[detection]"

    for name in [*TOOLS, *(f'topo {command}' for command in COMMANDS)]:
        status, out, err = run(f'{name} --help')
        assert (status, err) == (0, ''), (name, err)
        told = 'topo train' if name == 'train' else name
        assert re.match(rf'usage: {told}(\.py)? ', out), out
        assert len(out.splitlines()) > 5, out

    if error:
        assert run('demo_detection') == (1, '', f'error: {error}\n')
        with pytest.raises(ImportError, match=re.escape(error)):
            runpy.run_module('d2_topo.train_net')
    if hidden == 'detectron2':
        files = [str(path) for path in sorted((ROOT / 'tests').glob('test_d2_*.py'))]
        with contextlib.redirect_stdout(io.StringIO()) as out:
            pytest.main(['-q', '-rs', *files])
        lines = [line for line in out.getvalue().splitlines() if line.startswith('SKIPPED')]
        assert len(lines) == len(files), out.getvalue()
        assert all(f': detectron2 is not installed: {INSTALL_PAGE}' in line for line in lines)

    for name, options in (('net', {}), ('routed', {'connectivity': 'router'})):
        timm_topo.save(timm.create_model('test_toponet', num_classes=10, **options), name)
    for command, needs in (NEEDS | LONG).items():
        if hidden in needs:
            status, _, err = run(command)
            told = rf"error: No module named '{hidden}[\w.]*': pip install timm-topo\[(\w+)\].*\n"
            assert status != 0, command
            assert (found := re.fullmatch(told, err)), (command, err)
            assert found[1] == needs[hidden], (command, err)
            assert [path for path in os.listdir() if path.startswith('x')] == [], command
    for command, needs in NEEDS.items():
        if hidden not in needs:
            status, _, err = run(command)
            assert (status, err) == (0, ''), (command, err)


@pytest.mark.parametrize('hidden', ['detectron2', *PACKAGES])
def test_without_it_all_else_works_and_one_error_says_what_to_install(hidden, tmp_path):
    program = [sys.executable, '-W', 'ignore', __file__, hidden]
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    done = subprocess.run(program, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


if __name__ == '__main__':
    check(*sys.argv[1:])
