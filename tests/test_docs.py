"""README and docs: tools accept the commands, Python runs, and links, paths, names and messages exist."""

import ast
import pkgutil
import re
import runpy
from pathlib import Path

import pytest
import yaml
from docs_commands import FENCED, PLACEHOLDERS, ROOT, blocks, build_backbone, check, commands_of, inline_code
from mmengine.config import Config
from mmengine.registry import Registry

import mmsb.registry
from mmsb.analysis import zoo
from mmsb.models import any_network

FILES = ('README.md', 'CONTRIBUTING.md', 'docs/*.md', 'benchmarks/**/*.md')
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text() for name in FILES for path in sorted(ROOT.glob(name))}
FOLDERS = 'mmsb|tools|configs|docs|tests|benchmarks|requirements'
WRITTEN_BY_MAKE = 'docs/_build'


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(ROOT)


@pytest.fixture
def _types_restored():
    """Forget the types that an example has registered."""
    before = dict(mmsb.registry.MODELS._module_dict)
    yield
    mmsb.registry.MODELS._module_dict.clear()
    mmsb.registry.MODELS._module_dict.update(before)


@pytest.mark.parametrize('page', PAGES)
def test_commands_are_accepted_by_their_tools(page, tmp_path):
    for command in {tuple(command) for command in commands_of(PAGES[page], tmp_path)}:
        try:
            check(command)
        except (Exception, SystemExit) as error:
            pytest.fail(f'{page}: {" ".join(command)}\n{type(error).__name__}: {error}')


WRONG = [
    'python tools/nothing.py CONFIG',
    'python tools/train.py CONFIG --sede 1',
    'python tools/train.py configs/nothing.py',
    'python tools/train.py CONFIG --cfg-options model.backbone.nummaps=4',
    'python tools/train.py CONFIG --cfg-options train_loader.dataset.data_root=FOLDER',
    'python tools/analysis/throughput.py configs/nothing.py',
    'python -m mmsb.nothing',
    'python -m pytest tests/nothing',
    'bash tools/dist_train.sh CONFIG',
    'bash tools/dist_test.sh CONFIG 8',
    'pip install -r requirements/nothing.txt',
    "pip install -e '.[nothing]'",
    'mim train mmsb nothing.py',
    'make nothing',
    'rm -r nothing',
]


def fails(text: str, folder: Path) -> bool:
    try:
        for command in commands_of(text, folder):
            check(command)
    except (Exception, SystemExit):
        return True
    return False


@pytest.mark.parametrize('command', WRONG)
def test_a_wrong_command_is_found(command, tmp_path):
    assert fails(f'```bash\n{command}\n```', tmp_path)


def test_commands_are_found_in_blocks_and_in_text(tmp_path):
    text = 'Run `make test`, or `python\ntools/train.py CONFIG`, not `make` or `bash …`.\n\n'
    block = '```bash\nA=1 bash x.sh {a,b}.py \\\n  8   # two\nmake demo && cd x\n```\n'
    assert commands_of(text + block, tmp_path) == [
        ['bash', 'x.sh', 'a.py', 'b.py', '8'],
        ['make', 'demo'],
        ['make', 'test'],
        ['python', 'tools/train.py', PLACEHOLDERS['CONFIG']],
    ]


def test_a_short_command_runs(tmp_path, run_tool):
    config = ROOT / 'configs/coco/faster-rcnn_sb-r50_fpn_1x_coco.py'
    done = run_tool('analysis/complexity.py', config, '--shape', 800, 1333, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert config.stem in done.stdout


@pytest.mark.usefixtures('_types_restored')
@pytest.mark.parametrize('page', [page for page, text in PAGES.items() if blocks(text, 'python')])
def test_python_blocks_run(page, tmp_path, monkeypatch):
    names = {}
    monkeypatch.setattr(any_network, 'BLOCKS', dict(any_network.BLOCKS))  # a page adds a type
    for i, block in enumerate(blocks(PAGES[page], 'python')):
        exec(compile(block, f'{page}, block {i}', 'exec'), names)
        if re.search(r'^model = ', block, re.MULTILINE):
            (tmp_path / f'config_{i}.py').write_text(block)
            build_backbone(Config.fromfile(tmp_path / f'config_{i}.py'))


def anchors(text: str) -> set[str]:
    """Make the anchors that GitHub and MyST give to the headings of a page."""
    headings = re.findall(r'^#+ (.+)$', FENCED.sub('', text), re.MULTILINE)
    return {re.sub(r'[^\w -]', '', heading.lower()).replace(' ', '-') for heading in headings}


@pytest.mark.parametrize('page', PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r'\]\(([^)\s]+)\)', FENCED.sub('', PAGES[page])):
        path, _, anchor = target.partition('#')
        if '://' in path:
            continue
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.is_file(), f'{page} links to {target}'
        assert not anchor or anchor in anchors(file.read_text()), f'{page} links to {target}'


def test_every_page_is_reached_from_the_index():
    trees = re.findall(r'```\{toctree\}(.*?)```', PAGES['docs/index.md'], re.DOTALL)
    listed = {line.strip() for tree in trees for line in tree.splitlines()}
    assert {Path(page).stem for page in PAGES if page.startswith('docs/')} - {'index'} <= listed


def is_name(name: str) -> bool:
    """Tell whether a full name is a type of a registry, or a module or a part of one."""
    registries = [value for value in vars(mmsb.registry).values() if isinstance(value, Registry)]
    if any(registry.get(name) for registry in registries if registry.scope == 'mmsb'):
        return True
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


@pytest.mark.parametrize('page', PAGES)
def test_paths_and_names_exist(page):
    own = {f'mmsb.{name}' for name in re.findall(r'^class (\w+)', PAGES[page], re.MULTILINE)}  # an example's
    for code in inline_code(PAGES[page]):
        if re.fullmatch(rf'({FOLDERS})/[\w./-]*', code) and not code.startswith(WRITTEN_BY_MAKE):
            assert (ROOT / code).exists(), f'{page} names {code}'
        if re.fullmatch(r'mmsb(\.\w+)+', code) and code not in own:
            assert is_name(code), f'{page} names {code}'


def all_strings() -> str:
    """Collect the strings of the package and its tools, one a line, with '…' for what an f-string fills in."""
    found = []
    for path in [*ROOT.glob('mmsb/**/*.py'), *ROOT.glob('tools/**/*.py')]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append(''.join(part.value if isinstance(part, ast.Constant) else '…' for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return '\n'.join(' '.join(text.split()) for text in found)


def test_troubleshooting_quotes_messages_that_exist():
    quoted = re.findall(r'\*\*`(.+?)`\*\*', PAGES['docs/troubleshooting.md'])
    assert len(quoted) > 15
    strings = all_strings()
    missing = [part for message in quoted for part in re.split(r'\s*…\s*', message) if part not in strings]
    assert not missing


def test_reproduce_has_every_row_of_the_paper():
    lines = PAGES['docs/reproduce.md'].splitlines()
    for row in zoo.paper_rows():
        start = f'| {row["table"]} | {row["system"]} | {row["setting"]} | '
        line = next((line for line in lines if line.startswith(start)), '')
        assert f'`{Path(row["config"]).stem}`' in line, start
        options = re.findall(r'`model\.backbone\.([^`]+)`', line)
        wanted = [pair.replace(' ', '').replace("'", '') for pair in row['backbone_options'].split(';') if pair.strip()]
        assert options == wanted, start


def test_readme_is_short():
    assert len(PAGES['README.md'].splitlines()) <= 120


def test_citation_names_the_paper_and_this_version():
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    assert citation['cff-version'] == '1.2.0'
    assert citation['version'] == mmsb.__version__
    assert citation['preferred-citation']['identifiers'] == [dict(type='other', value='arXiv:2302.12505')]


def test_figures_show_what_the_networks_do(tmp_path):
    block, reach = (runpy.run_path(str(ROOT / f'docs/figures/{name}.py')) for name in ('block', 'reach'))
    block['draw'](tmp_path / 'block.png')
    assert (tmp_path / 'block.png').stat().st_size > 10_000
    assert block['shapes']()['mixed'] == (3, 10, 10)
    # a 7x7 of stride 2, a 3x3 pool of stride 2, and a 3x3 at stride 4 in each of three blocks
    assert reach['side_px'](reach['reach'](None, 1, images=2)) == 7 + 2 * 2 + 3 * 2 * 4
    assert reach['side_px'](reach['reach']({}, 1, images=2)) == reach['IMAGE_PX']
