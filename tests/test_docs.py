"""README and docs: commands are accepted by their tools, Python runs, links, paths, names and messages exist."""

import argparse
import ast
import importlib.util
import io
import pkgutil
import re
import runpy
import subprocess
import sys
from contextlib import redirect_stderr
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import Registry

import mmsb.registry
from mmsb.analysis import zoo
from mmsb.engine.launcher import load_config

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted(ROOT.glob('docs/*.md')), *ROOT.glob('benchmarks/**/*.md')]
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in PAGES}
COMMANDS = 'python pip make mim git bash torchrun pytest xargs'
PLACEHOLDERS = {'CONFIG': 'configs/demo/sb-resnet11_b64-10e_digits.py', 'SEED': '0'}
POSITIONAL = {'dist_train.sh': 1, 'dist_test.sh': 2, 'slurm_train.sh': 1}  # of the tool; slurm has two in front of them
FOLDERS = 'mmsb|tools|configs|docs|tests|benchmarks|requirements'
WRITTEN_LATER = 'docs/_build'
MODULES_FOR_OTHER_SCRIPTS = ('mmsb.ops', 'pytest')
ASIDE = re.compile(r'```.*?```', re.DOTALL)


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf'^```{language}\n(.*?)^```', text, re.DOTALL | re.MULTILINE)


def inline(text: str) -> list[str]:
    return [' '.join(code.split()) for code in re.findall(r'`([^`]+)`', ASIDE.sub('', text))]


def in_shell(script: str, folder: Path) -> list[list[str]]:
    """Let bash expand a script whose commands only write down their arguments; any other command is an error."""
    stubs = f'record() {{ printf "%s\\0" "$@" >&3; echo >&3; }}\nfor c in {COMMANDS}; do eval "$c() {{ record $c \\"\\$@\\"; }}"; done'
    script = f'set -eu; PATH=; exec 3>recorded\n{stubs}\ncd() {{ :; }}; source() {{ :; }}\n{script}'
    done = subprocess.run(['/bin/bash', '-c', script], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [line.strip('\0').split('\0') for line in (folder / 'recorded').read_text().splitlines()]


def commands_of(text: str, folder: Path) -> list[list[str]]:
    """Find all commands of a page: in its bash blocks, and in inline code that begins like one."""
    quoted = [code for code in inline(text) if code.split(' ')[0] in COMMANDS.split()[:6] and not re.search(r'[…\[]', code)]
    found = [argv for script in [*blocks(text, 'bash'), *quoted] for argv in in_shell(script, folder)]
    return [[PLACEHOLDERS.get(arg, arg) for arg in argv] for argv in found]


class Parsed(BaseException):  # run_tool catches every Exception
    """Ends a tool when it has parsed its command line."""


def parse(tool: str, arguments: list[str], monkeypatch) -> argparse.Namespace:
    """Run a tool, by path or as a module, up to the end of its own argument parser."""
    original = argparse.ArgumentParser.parse_args

    def parse_args(self, args=None, namespace=None):
        raise Parsed(original(self, args, namespace))

    message = io.StringIO()
    run = runpy.run_path if tool.endswith('.py') else runpy.run_module
    with monkeypatch.context() as patched, redirect_stderr(message):
        patched.setattr(argparse.ArgumentParser, 'parse_args', parse_args)
        patched.setattr(sys, 'argv', [tool, *arguments])
        patched.setattr(sys, 'path', [str(ROOT / Path(tool).parent), *sys.path])
        try:
            run(str(ROOT / tool) if tool.endswith('.py') else tool, run_name='__main__')
        except Parsed as parsed:
            return parsed.args[0]
        except SystemExit:
            pass
    raise AssertionError(f'{tool} refuses {arguments}: {message.getvalue().strip()[-500:]}')


def build_backbone(cfg: Config) -> None:
    """Build the backbone without memory, and without the checkpoint that it would start from."""
    cfg.model.backbone.pop('init_cfg', None)
    with torch.device('meta'):
        zoo.build_backbone(cfg)


def check_config(options: argparse.Namespace, monkeypatch) -> None:
    """Check that the config of a command exists, has the keys that `--cfg-options` overrides, and builds."""
    monkeypatch.setenv('LOCAL_RANK', '0')
    keys = [key.split('.') for key in options.cfg_options]
    cfg = Config.fromfile(options.config)
    for key in keys:
        node = cfg
        for part in key[:-2]:
            assert part in node, f'{options.config} has no {".".join(key[:-2])}, which --cfg-options names'
            node = node[part]
    build_backbone(load_config(options, lambda cfg: None))


def check_tool(tool: str, arguments: list[str], monkeypatch) -> None:
    if tool.endswith('.py'):
        assert (ROOT / tool).is_file(), f'{tool} does not exist'
    else:
        assert importlib.util.find_spec(tool), f'there is no module {tool}'
    if tool in MODULES_FOR_OTHER_SCRIPTS:
        paths = [arg for arg in arguments if arg.startswith('tests/')]
        assert all((ROOT / path.partition('::')[0]).exists() for path in paths), paths
        return
    options = parse(tool, arguments, monkeypatch)
    if hasattr(options, 'cfg_options'):
        check_config(options, monkeypatch)
    for config in [*getattr(options, 'configs', []), *([options.config] if hasattr(options, 'config') else [])]:
        zoo.find(config)


def check(argv: list[str], monkeypatch) -> None:
    """Check a command; AssertionError, or another exception, if it would fail."""
    monkeypatch.chdir(ROOT)
    command, *arguments = argv
    if command == 'xargs':
        command, *arguments = arguments[arguments.index('python') :]
    if command == 'python':
        module = arguments[0] == '-m'
        check_tool(arguments[module], arguments[module + 1 :], monkeypatch)
    elif command == 'torchrun':
        assert importlib.util.find_spec(arguments[arguments.index('-m') + 1])
    elif command == 'bash':
        script = Path(arguments[0])
        assert (ROOT / script).is_file(), f'{script} does not exist'
        start = 3 if script.name == 'slurm_train.sh' else 1
        end = start + POSITIONAL[script.name]
        rest = arguments[end:] if script.name == 'slurm_train.sh' else arguments[end + 1 :]
        if script.name != 'slurm_train.sh':
            assert arguments[end].isdecimal(), f'{script} needs a number of processes, got {arguments[end]}'
        tool = 'tools/test.py' if script.name == 'dist_test.sh' else 'tools/train.py'
        check_tool(tool, [*arguments[start:end], *rest], monkeypatch)
    elif command == 'make':
        done = subprocess.run(['make', '-n', *arguments], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    elif command == 'mim':
        if arguments[0] == 'train':
            assert len(list((ROOT / 'configs').rglob(arguments[2]))) == 1, arguments[2]
    elif command == 'pip':
        for before, argument in zip(arguments, arguments[1:], strict=False):
            assert before != '-r' or (ROOT / argument).is_file(), f'{argument} does not exist'
            extra = re.fullmatch(r'\.\[(\w+)\]', argument)
            assert not extra or f"'{extra[1]}':" in (ROOT / 'setup.py').read_text(), argument
            if argument.startswith('onedl-') and '==' in argument:
                assert argument in (ROOT / 'requirements/mminstall.txt').read_text().splitlines(), argument
    else:
        assert command in ('git', 'pytest'), f'{command} is not checked'


@pytest.mark.parametrize('page', PAGES)
def test_commands_are_accepted_by_their_tools(page, tmp_path, monkeypatch):
    found = commands_of(PAGES[page], tmp_path)
    for argv in {tuple(argv): argv for argv in found}.values():
        try:
            check(argv, monkeypatch)
        except (Exception, SystemExit) as error:
            pytest.fail(f'{page}: {" ".join(argv)}\n{type(error).__name__}: {error}')


@pytest.mark.parametrize(
    'command',
    [
        'python tools/nothing.py CONFIG',
        'python tools/train.py CONFIG --sede 1',
        'python tools/train.py configs/nothing.py',
        'python tools/train.py CONFIG --cfg-options model.backbone.nummaps=4',
        'python tools/train.py CONFIG --cfg-options train_loader.dataset.data_root=FOLDER',
        'python tools/analysis/throughput.py configs/nothing.py',
        'python -m mmsb.nothing',
        'bash tools/dist_train.sh CONFIG',
        'pip install -r requirements/nothing.txt',
        "pip install -e '.[nothing]'",
        'mim train mmsb nothing.py',
        'make nothing',
        'rm -r nothing',
    ],
)
def test_a_wrong_command_is_found(command, tmp_path, monkeypatch):
    with pytest.raises((Exception, SystemExit)):
        for argv in commands_of(f'```bash\n{command}\n```', tmp_path):
            check(argv, monkeypatch)


def test_commands_are_found_in_blocks_and_in_text(tmp_path):
    text = 'Run `make test`, or `python\ntools/train.py CONFIG`:\n```bash\nA=1 bash x.sh {a,b}.py \\\n  8   # two\nmake demo && cd x\n```\n'
    config = PLACEHOLDERS['CONFIG']
    assert commands_of(text, tmp_path) == [
        ['bash', 'x.sh', 'a.py', 'b.py', '8'], ['make', 'demo'], ['make', 'test'], ['python', 'tools/train.py', config]
    ]  # fmt: skip


def test_a_short_command_runs(tmp_path, run_tool):
    args = ('configs/coco/faster-rcnn_sb-r50_fpn_1x_coco.py', '--shape', 800, 1333)
    done = run_tool('analysis/complexity.py', ROOT / args[0], *args[1:], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert 'faster-rcnn_sb-r50_fpn_1x_coco' in done.stdout


@pytest.fixture
def _registered_types_restored():
    before = dict(mmsb.registry.MODELS._module_dict)
    yield
    mmsb.registry.MODELS._module_dict.clear()
    mmsb.registry.MODELS._module_dict.update(before)


@pytest.mark.usefixtures('_registered_types_restored')
@pytest.mark.parametrize('page', [page for page, text in PAGES.items() if blocks(text, 'python')])
def test_python_blocks_run(page, tmp_path):
    names = {}
    for i, block in enumerate(blocks(PAGES[page], 'python')):
        exec(compile(block, f'{page}, block {i}', 'exec'), names)
        if re.search(r'^model = ', block, re.MULTILINE):
            (tmp_path / f'config_{i}.py').write_text(block)
            build_backbone(Config.fromfile(tmp_path / f'config_{i}.py'))


def anchors(text: str) -> set[str]:
    """Make the anchors that GitHub and MyST give to the headings of a page."""
    headings = re.findall(r'^#+ (.+)$', ASIDE.sub('', text), re.MULTILINE)
    return {re.sub(r'[^\w -]', '', heading.lower()).replace(' ', '-') for heading in headings}


@pytest.mark.parametrize('page', PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r'\]\(([^)\s]+)\)', ASIDE.sub('', PAGES[page])):
        path, _, anchor = target.partition('#')
        if '://' in path:
            continue
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.is_file(), f'{page} links to {target}'
        assert not anchor or anchor in anchors(file.read_text()), f'{page} links to {target}'


def test_every_page_is_reached_from_the_index():
    listed = {line.strip() for toctree in re.findall(r'```\{toctree\}(.*?)```', PAGES['docs/index.md'], re.DOTALL)
              for line in toctree.splitlines()}  # fmt: skip
    assert {Path(page).stem for page in PAGES if page.startswith('docs/')} - {'index'} <= listed


def _is_name(name: str) -> bool:
    registries = [value for value in vars(mmsb.registry).values() if isinstance(value, Registry) and value.scope == 'mmsb']
    if any(registry.get(name) for registry in registries):
        return True
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


@pytest.mark.usefixtures('_registered_types_restored')
@pytest.mark.parametrize('page', [page for page in PAGES if page != 'docs/changelog.md'])
def test_paths_and_names_exist(page):
    own = {f'mmsb.{name}' for name in re.findall(r'^class (\w+)', PAGES[page], re.MULTILINE)}  # an example's
    for code in inline(PAGES[page]):
        if re.fullmatch(rf'({FOLDERS})/[\w./-]*', code) and not code.startswith(WRITTEN_LATER):
            assert (ROOT / code).exists(), f'{page} names {code}'
        if re.fullmatch(r'mmsb(\.\w+)+', code) and code not in own:
            assert _is_name(code), f'{page} names {code}'


def messages() -> str:
    """Collect all strings of the package and its tools, one a line; what they fill in is '…'."""
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
    said = messages()
    for message in quoted:
        parts = [re.escape(part) for part in re.split(r'\s*…\s*', message) if part]
        assert all(re.search(part, said) for part in parts), f'no message like {message!r}'


def test_reproduce_has_every_row_of_the_paper():
    lines = PAGES['docs/reproduce.md'].splitlines()
    for row in zoo.paper_rows():
        start = f'| {row["table"]} | {row["system"]} | {row["setting"]} | '
        line = next((line for line in lines if line.startswith(start)), '')
        assert f'`{Path(row["config"]).stem}`' in line, start
        options = re.findall(r'`model\.backbone\.([^`]+)`', line)
        wanted = [pair.replace(' ', '').replace("'", '') for pair in row['backbone_options'].split(';') if pair.strip()]
        assert options == wanted, start


def test_readme_is_the_door_and_not_the_house():
    assert len(PAGES['README.md'].splitlines()) <= 150


def test_citation_file_names_paper_and_version():
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    assert citation['cff-version'] == '1.2.0'
    assert citation['version'] == mmsb.__version__
    assert citation['preferred-citation']['identifiers'] == [dict(type='other', value='arXiv:2302.12505')]


def test_figures_are_drawn_by_the_package(tmp_path):
    scripts = {path.stem: runpy.run_path(str(path)) for path in (ROOT / 'docs/figures').glob('*.py')}
    scripts['block']['draw'](tmp_path / 'block.png')
    assert (tmp_path / 'block.png').stat().st_size > 10_000
    assert scripts['block']['shapes']()['mixed'] == (3, 10, 10)
    reach, side_px = scripts['reach']['reach'], scripts['reach']['side_px']
    # a 7x7 of stride 2, a 3x3 pool of stride 2, and a 3x3 of stride 1 in each of three blocks
    assert side_px(reach(None, 1, images=2)) == 7 + 2 * 2 + 3 * 2 * 4
    assert side_px(reach({}, 1, images=2)) == 224
