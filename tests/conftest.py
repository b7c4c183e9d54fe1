"""Shared fixtures: the demo data, made once, and a way to run a tool as a user does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.registry import DefaultScope

from mmsb.datasets import digits

ROOT = Path(__file__).resolve().parents[1]
torch.set_num_threads(1)  # the tensors are tiny; the test processes share the cores


@pytest.fixture(scope='session')
def demo_data(tmp_path_factory) -> Path:
    """Folder that has data/demo."""
    folder = tmp_path_factory.mktemp('demo')
    digits.write(folder / 'data/demo')
    return folder


@pytest.fixture
def arena(demo_data, tmp_path) -> Path:
    """Folder with the data, for the trainings of `chaos.victim`."""
    (tmp_path / 'data').symlink_to(demo_data / 'data')
    return tmp_path


def run(name: str, *args, cwd: Path, timeout_s: int = 300, **environment) -> subprocess.CompletedProcess:
    """Run `tools/NAME` with arguments in a folder, as a user does."""
    script = ROOT / 'tools' / name
    command = ['bash', str(script)] if script.suffix == '.sh' else [sys.executable, str(script)]
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHON': sys.executable, 'PYTHONPATH': str(ROOT), **environment}
    arguments = [str(arg) for arg in args]
    return subprocess.run([*command, *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout_s)


@pytest.fixture(scope='session')
def run_tool():
    return run


@pytest.fixture(autouse=True)
def _no_scope_left_behind():
    """Keep a default scope that one test has set from the next test."""
    before = dict(DefaultScope._instance_dict)
    yield
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(before)
