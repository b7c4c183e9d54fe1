"""Shared fixtures: demo data made once, and a function to run a tool as a user does. GPUs are hidden."""

import contextlib
import importlib.metadata
import logging
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mmsb.checkpoints.load import DATA_FROM, SOUND_FROM, install_reader
from mmsb.engine.dry_run.alone import managers

sys.path.insert(0, str(Path(__file__).parent))
import scenes
import warm

ROOT = Path(__file__).resolve().parents[1]
multiprocessing.set_start_method('fork', force=True)  # as MMEngine's runner does; Python 3.14 has another default
torch.set_num_threads(1)  # the tensors are tiny; the test processes share the cores


def pytest_configure(config) -> None:
    if config.getoption('markexpr') != 'gpu':
        os.environ['CUDA_VISIBLE_DEVICES'] = ''  # it is read when CUDA is first asked for


def pytest_runtest_setup(item) -> None:
    if item.get_closest_marker('untrusted') and torch.__version__ < SOUND_FROM:
        pytest.skip('the reader of PyTorch < 2.10 has known holes')
    if torch.__version__ < DATA_FROM:
        install_reader(trust=True)  # for the tests' own files
    if item.get_closest_marker('gpu') and not torch.cuda.is_available():
        pytest.skip('needs a GPU: pytest -m gpu')


@pytest.fixture(scope='session')
def demo_data(tmp_path_factory) -> Path:
    """Folder that has data/demo."""
    folder = tmp_path_factory.mktemp('demo')
    scenes.write(folder)
    return folder


@pytest.fixture(autouse=True, scope='session')
def _compiled_code(tmp_path_factory):
    """Keep the compiler's files of one session apart, so that a killed test leaves none half-written for the next."""
    os.environ['TORCHINDUCTOR_CACHE_DIR'] = str(tmp_path_factory.mktemp('compiled'))


@pytest.fixture
def arena(demo_data, tmp_path) -> Path:
    """Folder with the data, for the trainings of `chaos.victim`."""
    (tmp_path / 'data').symlink_to(demo_data / 'data')
    return tmp_path


def run(
    name: str, *args, cwd: Path, timeout_s: int = 300, fresh: bool = False, **environment
) -> subprocess.CompletedProcess:
    """Run `tools/NAME`, or a module, with arguments in a folder; `fresh` in a process that imports all anew."""
    script = ROOT / 'tools' / name
    python = sys.executable if fresh else warm.python()
    command = {'.sh': ['bash', str(script)], '.py': [python, str(script)]}.get(script.suffix, [python, '-m', name])
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT), **environment}
    env |= dict(PYTHON=python, PYTHON_EXEC=python)  # of the shell scripts, and of torchrun
    arguments = [str(arg) for arg in args]
    return subprocess.run([*command, *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout_s)


@pytest.fixture(autouse=True)
def _fault_of_stock_mmseg(request):
    """Leave out trainings of the digits' segmenter where mmseg looks up the class weight of an ignored label."""
    parameters = getattr(request.node, 'callspec', None)
    names = [str(value) for value in parameters.params.values()] if parameters else []
    stock = next(importlib.metadata.Distribution.discover(name='mmsegmentation'), None)  # not OneDL's
    if stock and any('resnet20_b8-200i_digits-scenes' in name for name in names):
        pytest.skip('stock mmseg fails with class weights and ignored labels: IndexError, index 255')


@pytest.fixture(scope='session')
def run_tool():
    return run


@contextlib.contextmanager
def _nothing_left_behind() -> Iterator[None]:
    """Keep mmengine's global objects, silenced logs, and what a tool makes of torch.load from what runs next."""
    before, silenced = {manager: dict(manager._instance_dict) for manager in managers()}, logging.root.manager.disable
    os.environ.pop('TORCH_FORCE_WEIGHTS_ONLY_LOAD', None)
    yield
    os.environ.pop('TORCH_FORCE_WEIGHTS_ONLY_LOAD', None)
    logging.disable(silenced)
    for manager in managers():
        manager._instance_dict.clear()
        manager._instance_dict.update(before.get(manager, {}))


@pytest.fixture(autouse=True, scope='module')
def _nothing_left_behind_by_the_fixtures_of_a_file():
    with _nothing_left_behind():
        yield


@pytest.fixture(autouse=True)
def _nothing_left_behind_by_a_test():
    with _nothing_left_behind():
        yield
