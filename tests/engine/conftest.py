"""The victims of tools/chaos.py, for the tests of what a training survives."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'tools'))


@pytest.fixture
def arena(demo_data, tmp_path) -> Path:
    """Folder with the data, for victims."""
    (tmp_path / 'data').symlink_to(demo_data / 'data')
    return tmp_path
