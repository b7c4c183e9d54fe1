"""Check the commands of a page without running them: the tool that a command calls parses its arguments.

Bash itself expands a page's scripts, with functions in the place of the commands. A Python tool is run up to the end of
its own argument parser; the config that it is given is read, overridden and built on the meta device.
"""

import argparse
import importlib.util
import io
import itertools
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from unittest import mock

import torch
from mmengine.config import Config

from mmsb.analysis import zoo
from mmsb.configs import read_config
from mmsb.engine.dry_run import known_keys

ROOT = Path(__file__).resolve().parents[1]
PLACEHOLDERS = {'CONFIG': 'configs/demo/sb-resnet11_b64-10e_digits.py', 'SEED': '0'}
RUN_OTHER_SCRIPTS = ('mmsb.ops', 'pytest')
FENCED = re.compile(r'```.*?```', re.DOTALL)
POSITIONAL = {  # before the arguments of the tool: what it is given by the script, and the number of processes
    'dist_train.sh': ('tools/train.py', 0, 1),
    'dist_test.sh': ('tools/test.py', 0, 2),
    'slurm_train.sh': ('tools/train.py', 2, 1),
}
STUBS = r"""set -eu; PATH=; exec 3>recorded
record() { printf '%s\0' "$@" >&3; echo >&3; }
for command in COMMANDS; do eval "$command() { record $command \"\$@\"; }"; done
cd() { :; }; source() { :; }
"""


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf'^```{language}\n(.*?)^```', text, re.DOTALL | re.MULTILINE)


def inline_code(text: str) -> list[str]:
    return [' '.join(code.split()) for code in re.findall(r'`([^`]+)`', FENCED.sub('', text))]


def expand(script: str, folder: Path) -> list[list[str]]:
    """List the commands of a bash script with their arguments; AssertionError for a command that is not in CHECKS."""
    script = STUBS.replace('COMMANDS', ' '.join(CHECKS)) + script
    done = subprocess.run(['/bin/bash', '-c', script], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [line.strip('\0').split('\0') for line in (folder / 'recorded').read_text().splitlines()]


def commands_of(text: str, folder: Path) -> list[list[str]]:
    """List the commands of a page: of its bash blocks, and of inline code that begins with one and is complete."""
    quoted = [code for code in inline_code(text) if code.split(' ')[0] in CHECKS and not re.search(r'[…[]', code)]
    scripts = blocks(text, 'bash') + [code for code in quoted if ' ' in code]
    found = [command for script in scripts for command in expand(script, folder)]
    return [[PLACEHOLDERS.get(argument, argument) for argument in command] for command in found]


class _Parsed(BaseException):  # the tools catch every Exception
    """Ends a tool when it has parsed its command line."""


def parse(tool: str, arguments: list[str]) -> argparse.Namespace:
    """Run a tool, a path or a module, up to the end of its own argument parser."""
    original = argparse.ArgumentParser.parse_args

    def parse_args(parser, args=None, namespace=None):
        raise _Parsed(original(parser, args, namespace))

    said = io.StringIO()
    patches = mock.patch.object(argparse.ArgumentParser, 'parse_args', parse_args), redirect_stderr(said)
    with patches[0], patches[1], mock.patch.object(sys, 'argv', [tool, *arguments]):
        try:
            if tool.endswith('.py'):
                runpy.run_path(str(ROOT / tool), run_name='__main__')
            else:
                runpy.run_module(tool, run_name='__main__')
        except _Parsed as parsed:
            return parsed.args[0]
        except SystemExit:
            pass
    raise AssertionError(f'{tool} does not accept {arguments}: {said.getvalue().strip()}')


def build_backbone(cfg: Config) -> None:
    """Build the backbone of a config without memory, and without the checkpoint that it would start from."""
    cfg.model.backbone.pop('init_cfg', None)
    with torch.device('meta'):
        zoo.build_backbone(cfg)


def check_config(path: str, cfg_options: dict) -> None:
    """Check that a config exists, has the sections that `--cfg-options` overrides, and builds with them."""
    cfg = read_config(str(ROOT / path))
    known = {*cfg, *known_keys()}
    for key in cfg_options:
        first, *between = key.split('.')[:-1] or [key]
        assert first in known, f'{path} has no {first!r}'
        node = cfg.get(first)
        for part in between[:-1]:
            assert part in node, f'{path} has no {part!r}, which {key} names'
            node = node[part]
    cfg.merge_from_dict(cfg_options)
    build_backbone(cfg)


def _check_tool(tool: str, arguments: list[str]) -> None:
    if tool.endswith('.py'):
        assert (ROOT / tool).is_file(), f'{tool} does not exist'
    else:
        assert importlib.util.find_spec(tool), f'there is no module {tool}'
    if tool in RUN_OTHER_SCRIPTS:
        missing = [arg for arg in arguments if arg.startswith('tests') and not (ROOT / arg).exists()]
        assert not missing, f'{missing[0]} does not exist'
        return
    options = parse(tool, arguments)
    if hasattr(options, 'config'):
        check_config(options.config, getattr(options, 'cfg_options', {}))
    for config in getattr(options, 'configs', []):
        zoo.find(ROOT / config)


def _check_python(first: str, *rest: str) -> None:
    _check_tool(*(rest[:1] if first == '-m' else [first]), list(rest[first == '-m' :]))


def _check_bash(script: str, *arguments: str) -> None:
    assert (ROOT / script).is_file(), f'{script} does not exist'
    tool, before, count = POSITIONAL[Path(script).name]
    end = before + count
    rest = arguments[end:]
    if script.endswith(('dist_train.sh', 'dist_test.sh')):
        assert ''.join(rest[:1]).isdecimal(), f'{script} needs a number of processes after {arguments[:end]}'
        rest = rest[1:]
    _check_tool(tool, [*arguments[before:end], *rest])


def _check_make(*targets: str) -> None:
    done = subprocess.run(['make', '-n', *targets], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _check_pip(*arguments: str) -> None:
    for before, argument in itertools.pairwise(arguments):
        assert before != '-r' or (ROOT / argument).is_file(), f'{argument} does not exist'
        extra = re.fullmatch(r'\.\[(\w+)\]', argument)
        assert not extra or f"'{extra[1]}':" in (ROOT / 'setup.py').read_text(), f'there is no extra {argument}'
        if argument.startswith('onedl-') and '==' in argument:
            assert argument in (ROOT / 'requirements/mminstall.txt').read_text().split(), f'{argument} is not installed'


def _check_mim(action: str, *arguments: str) -> None:
    if action == 'train':
        name = arguments[1]
        found = [ROOT / name] if (ROOT / name).is_file() else list((ROOT / 'configs').rglob(name))
        assert len(found) == 1, f'{len(found)} configs are named {name}'


def _check_after(name: str) -> Callable[..., None]:
    """Make the check of a command that runs Python: of what follows the argument `name`."""
    return lambda *arguments: _check_python(*arguments[arguments.index(name) + (name == 'python') :])


CHECKS = {
    'python': _check_python,
    'bash': _check_bash,
    'make': _check_make,
    'pip': _check_pip,
    'mim': _check_mim,
    'torchrun': _check_after('-m'),
    'xargs': _check_after('python'),
    'git': lambda *_: None,
}


def check(command: list[str]) -> None:
    """Check one command.

    Raises:
        AssertionError: it would fail; or what the tool itself raises.
    """
    CHECKS[command[0]](*command[1:])
