"""Where `mmcv._ext` comes from: ours is used only if mmcv has none, and the user is informed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTICE = 'mmcv has no compiled operations: mmsb.ops stands in for them (MMSB_OPS=off turns this off)\n'


def python(*arguments: str, paths=(), **environment) -> subprocess.CompletedProcess:
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join([*map(str, paths), str(ROOT)]), **environment}
    return subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True, timeout=120)


@pytest.fixture
def mmcv_with(tmp_path):
    """Make an mmcv with a custom `_ext` file and a stand-in for the rest of the package."""

    def make(name: str, content: bytes) -> Path:
        package = tmp_path / 'mmcv'
        package.mkdir()
        (package / '__init__.py').write_text('')
        (package / name).write_bytes(content)
        return tmp_path

    return make


def test_importing_mmsb_is_enough_and_said_once():
    done = python(
        '-c', 'import mmsb; import mmcv.ops, mmcv._ext; from mmdet.apis import init_detector; print(mmcv._ext)'
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(NOTICE) == 1
    assert 'mmsb/ops/ext.py' in done.stdout


def test_other_processes_of_a_distributed_run_stay_silent():
    done = python('-c', 'import mmsb, mmcv._ext', RANK='1')
    assert (done.returncode, done.stderr) == (0, '')


def test_nothing_is_imported_or_said_before_mmcv_asks():
    code = "import sys, mmsb; print({'torchvision', 'mmcv', 'mmdet', 'mmcv._ext'} & set(sys.modules))"
    done = python('-c', code)
    assert (done.stdout, done.stderr) == ('set()\n', '')


def test_the_finders_have_no_caches_to_forget():
    done = python('-c', 'import importlib, mmsb; importlib.invalidate_caches()')
    assert (done.returncode, done.stderr) == (0, '')


def test_it_can_be_turned_off():
    done = python('-c', 'import mmsb, mmcv.ops', MMSB_OPS='off')
    assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'mmcv._ext'"


def test_a_wrong_setting_is_named():
    done = python('-c', 'import mmsb', MMSB_OPS='no')
    assert done.stderr.splitlines()[-1] == "ValueError: environment variable MMSB_OPS must be 'on' or 'off', got 'no'"


def test_a_compiled_extension_wins(mmcv_with):
    folder = mmcv_with('_ext.py', b"origin = 'compiled'")
    done = python('-c', 'import mmsb, mmcv._ext; print(mmcv._ext.origin)', paths=[folder])
    assert (done.stdout, done.stderr) == ('compiled\n', '')


def test_the_error_of_a_broken_extension_is_shown(mmcv_with):
    from importlib.machinery import EXTENSION_SUFFIXES

    folder = mmcv_with(f'_ext{EXTENSION_SUFFIXES[0]}', b'for another PyTorch')
    done = python('-c', 'import mmsb, mmcv._ext', paths=[folder])
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith('ImportError:')
    assert '_ext' in done.stderr.splitlines()[-1]
    assert NOTICE not in done.stderr


def test_an_operation_that_is_missing_is_named_when_it_is_called():
    code = 'import mmsb, mmcv.ops, torch; mmcv.ops.nms_rotated(torch.rand(2, 5), torch.rand(2), 0.5)'
    done = python('-c', code)
    assert done.stderr.splitlines()[-1].startswith(
        "NotImplementedError: operation 'nms_rotated' is neither in mmsb.ops nor compiled: install mmcv"
    )


def test_any_script_runs_with_the_stand_ins(tmp_path):
    (tmp_path / 'helper.py').write_text('answer = 42')
    script = tmp_path / 'script.py'
    script.write_text('import sys, helper, mmcv.ops\nprint(sys.argv, helper.answer, __name__)\nsys.exit(3)')
    done = python('-m', 'mmsb.ops', str(script), '--option', 'value')
    assert done.returncode == 3
    assert done.stdout == f"['{script}', '--option', 'value'] 42 __main__\n"


@pytest.mark.parametrize('arguments', [(), ('nowhere.py',)])
def test_a_script_that_does_not_exist_is_one_line(arguments):
    done = python('-m', 'mmsb.ops', *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith('usage: python -m mmsb.ops SCRIPT ARGS')
    assert len(done.stderr.splitlines()) == 1
