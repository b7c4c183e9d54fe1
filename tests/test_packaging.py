"""Distribution: the sdist, the wheel with its configs and tools, `mim train mmsb` from it, and the model index."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config

from mmsb.analysis import zoo

ROOT = Path(__file__).resolve().parents[1]
NOT_SHIPPED = shutil.ignore_patterns('.*', '__pycache__', '*.egg-info', 'build', 'dist', 'data', 'shared', 'work_dirs')
GOLDEN = json.loads((ROOT / 'tests/golden/complexity.json').read_text())
METAFILES = [ROOT / path for path in yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']]
MODELS = {model['Config']: model for path in METAFILES for model in yaml.safe_load(path.read_text())['Models']}


def run(*args, cwd: Path, **environment) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, args)],
        cwd=cwd,
        env={**os.environ, 'OMP_NUM_THREADS': '1', **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def files(folder: str) -> set[str]:
    """Files that belong into a wheel, below a folder of the root."""
    paths = (path for path in (ROOT / folder).rglob('*') if path.is_file() and path.suffix != '.pyc')
    return {path.relative_to(ROOT).as_posix() for path in paths}


@pytest.fixture(scope='module')
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('source') / 'mmsb'
    shutil.copytree(ROOT, folder, ignore=NOT_SHIPPED)
    return folder


@pytest.fixture(scope='module')
def wheel(source, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('wheel')
    run('-m', 'pip', 'wheel', '--no-deps', '--no-build-isolation', '-w', folder, source, cwd=folder)
    return next(folder.glob('*.whl'))


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('installed')
    run('-m', 'pip', 'install', '--no-deps', '--target', folder, wheel, cwd=folder)
    return folder


def test_wheel_carries_configs_and_tools_and_no_tests(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    resources = {'model-index.yml', *files('configs'), *files('tools')}
    assert {name for name in names if name.startswith('mmsb/.mim/')} == {f'mmsb/.mim/{name}' for name in resources}
    assert files('mmsb') == {name for name in names if name.startswith('mmsb/') and '/.mim/' not in name}
    assert {name.split('/')[0] for name in names} == {
        'mmsb',
        next(n for n in names if n.endswith('WHEEL')).split('/')[0],
    }
    assert not [name for name in names if re.search(r'chaos|malicious|forge|mutation', name)], (
        'attacks are for tests only'
    )
    record = next(name for name in names if name.endswith('.dist-info/RECORD'))
    assert zipfile.ZipFile(wheel).read(record).startswith(b'mmsb/')


def test_metadata(wheel):
    archive = zipfile.ZipFile(wheel)
    metadata = message_from_bytes(archive.read(next(n for n in archive.namelist() if n.endswith('/METADATA'))))
    assert metadata['Name'] == 'mmsb', 'mim finds a package by the name of its distribution'
    assert metadata['License-Expression'] == 'Apache-2.0'
    assert set(metadata.get_all('Provides-Extra')) == {'mminstall', 'dev', 'export', 'all'}
    requirements = metadata.get_all('Requires-Dist')
    hard = [line for line in requirements if 'extra ==' not in line]
    assert any(line.startswith('torch') for line in hard)
    assert not [line for line in hard if line.startswith(('mm', 'onedl'))], (
        'they would be laid over the family that is there'
    )
    assert sum('mminstall' in line for line in requirements) == 5


def test_wheel_of_the_sdist_is_the_same(wheel, source, tmp_path):
    pytest.importorskip('build.__main__')  # a folder build/ would do for 'build'
    run('-m', 'build', '--no-isolation', '-o', tmp_path, source, cwd=tmp_path)  # the wheel from the sdist
    again = zipfile.ZipFile(next(tmp_path.glob('*.whl')))
    first = zipfile.ZipFile(wheel)
    assert {i.filename: i.CRC for i in again.infolist()} == {i.filename: i.CRC for i in first.infolist()}


def test_build_leaves_no_second_copy_of_a_config(wheel, source):
    """In an editable installation mim searches the root, and a name that is there twice is an error."""
    assert len(list(source.rglob('sb-resnet11_b64-10e_digits.py'))) == 1


def _library_of(config: Path) -> str:
    if 'rcnn' in config.name:
        return 'mmdet'
    return 'mmseg' if 'fpn_' in config.name else 'mmpretrain'


def test_every_installed_config_parses(installed):
    folder = installed / 'mmsb/.mim/configs'
    for path in folder.rglob('*.py'):
        if importlib.util.find_spec(_library_of(path)):
            Config.fromfile(path)


def test_mim_trains_from_the_wheel(installed, demo_data, tmp_path):
    pytest.importorskip('mim')
    options = [f'{part}_dataloader.{key}' for part in ('train', 'val') for key in (
        'dataset.indices=8', 'num_workers=0', 'persistent_workers=False')]  # fmt: skip
    command = 'from mim.__main__ import cli; cli()'
    args = ['train', 'mmsb', 'sb-resnet11_b64-10e_digits.py', '--gpus', '0', '--work-dir', tmp_path, '--cfg-options']
    out = run('-c', command, *args, 'train_cfg.max_epochs=1', *options, cwd=demo_data, PYTHONPATH=str(installed))
    assert f'{sys.executable} {installed}/' in out
    assert '/.mim/tools/train.py ' in out
    assert 'Training finished successfully' in out
    assert (tmp_path / 'epoch_1.pth').is_file()


def test_without_the_family_one_line_says_what_to_install(tmp_path):
    script = (
        'import importlib.util as u\n'
        'find = u.find_spec\n'
        "u.find_spec = lambda name, *rest: None if name in ('mmengine', 'mmcv') else find(name, *rest)\n"
        'try:\n    import mmsb\nexcept ImportError as error:\n    print(error)\n'
    )
    lines = run('-c', script, cwd=tmp_path, PYTHONPATH=str(ROOT)).splitlines()
    assert len(lines) == 1
    assert 'mmengine and mmcv' in lines[0]
    assert 'mminstall' in lines[0]


NO_OPENCV = {
    'libGL': "raise ImportError('libGL.so.1: cannot open shared object file: No such file or directory')",
    'not installed': "raise ModuleNotFoundError('No module named cv2')",
    'half uninstalled': '',  # headless and the other share a folder: uninstalling one leaves less than a package
}
LIBGL = 'raise ImportError("libGL.so.1: cannot open shared object file:\\nNo such file or directory")'
SCRIPTS = [path for path in sorted((ROOT / 'tools').rglob('*.py')) if not path.read_text().startswith('"""Moved: ')]
TOOLS = [['-m', 'mmsb.datasets.digits'], *([str(path)] for path in SCRIPTS)]


@pytest.mark.parametrize('fault', NO_OPENCV)
def test_without_opencv_one_line_says_what_to_install(fault, tmp_path):
    (tmp_path / 'cv2.py').write_text(NO_OPENCV[fault])
    script = 'try:\n    import mmsb\nexcept ImportError as error:\n    print(error)\n'
    (line,) = run('-c', script, cwd=tmp_path, PYTHONPATH=f'{tmp_path}:{ROOT}').splitlines()
    assert 'pip install opencv-python-headless' in line
    assert 'uninstall -y opencv-python opencv-python-headless' in line
    assert ('libGL.so.1' in line) == (fault == 'libGL')


@pytest.mark.parametrize('tool', TOOLS, ids=lambda tool: Path(tool[-1]).name)
@pytest.mark.parametrize('name', ['cv2', 'mmengine', 'torch'])
def test_a_tool_says_it_in_one_line_too(tool, name, tmp_path):
    text = LIBGL if name == 'cv2' else f'raise ModuleNotFoundError("No module named {name}")'
    (tmp_path / f'{name}.py').write_text(text)
    hide = f'u.find_spec = lambda name, *rest: None if name == {name!r} else find(name, *rest)'
    hide = f'import importlib.util as u\nfind = u.find_spec\n{hide}\n'
    (tmp_path / 'sitecustomize.py').write_text(hide)
    environment = {**os.environ, 'PYTHONPATH': f'{tmp_path}:{ROOT}'}
    command = [sys.executable, *tool, '--help']
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    (line,) = (done.stdout + done.stderr).splitlines()
    assert line.startswith('error: mmsb needs ' + ('OpenCV' if name == 'cv2' else name))
    assert ('opencv-python-headless' if name == 'cv2' else 'mminstall') in line
    assert done.returncode == 1


def test_model_index_lists_every_config():
    assert set(MODELS) == {f'configs/{name}' for name in zoo.shipped()}
    assert all((ROOT / config).is_file() for config in MODELS)
    collections = {entry['Name'] for path in METAFILES for entry in yaml.safe_load(path.read_text())['Collections']}
    assert {model['In Collection'] for model in MODELS.values()} == collections


@pytest.mark.parametrize('config', MODELS)
def test_model_index_has_the_counts(config):
    model = MODELS[config]
    assert model['Name'] == Path(config).stem
    assert not {'Results', 'Weights'} & set(model), 'there are none of our own'
    cfg = Config.fromfile(ROOT / config)
    counts = GOLDEN[config.removeprefix('configs/')]  # which are counted anew in test_configs.py
    wanted = {'Batch Size': cfg.auto_scale_lr.base_batch_size, 'Parameters': counts['params'], 'FLOPs': counts['ops']}
    assert {key: model['Metadata'].get(key) for key in wanted} == wanted


def test_model_index_loads_in_the_library_that_reads_it():
    loader = pytest.importorskip('modelindex.load_model_index')
    index = loader.load(str(ROOT / 'model-index.yml'))
    index.build_models_with_collections()
    assert len(index.models) == len(MODELS)
