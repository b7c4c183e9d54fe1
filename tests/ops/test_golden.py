"""Our operations match golden values from mmcv's compiled kernels (written by `compare.py`)."""

from pathlib import Path

import numpy as np
import pytest
from cases import CASES, run, use_kernels

import mmsb.ops.ext

GOLDEN = Path(__file__).parents[1] / 'golden/ops.npz'
EXACT = ('nms', 'psa_mask')  # and every integer result


def check_equal(name: str, ours: dict, golden: dict) -> None:
    assert set(ours) == set(golden)
    for key, value in ours.items():
        expected = golden[key]
        assert value.shape == expected.shape, f'{name}: {key}'
        exact = name.startswith(EXACT) or 'roi_align pool_mode=avg' in name or expected.dtype.kind == 'i'
        tolerance = 0 if exact else 2e-5
        np.testing.assert_allclose(value.numpy(), expected, rtol=tolerance, atol=tolerance, err_msg=f'{name}: {key}')


@pytest.mark.parametrize('name', CASES)
def test_operation_equals_the_compiled_one(name, monkeypatch):
    use_kernels(monkeypatch, mmsb.ops.ext)
    with np.load(GOLDEN) as arrays:
        golden = {key.split('/', 1)[1]: arrays[key] for key in arrays if key.split('/', 1)[0] == name}
    check_equal(name, run(name, 0), golden)


def test_every_golden_value_belongs_to_a_case():
    with np.load(GOLDEN) as arrays:
        assert {key.split('/', 1)[0] for key in arrays} == set(CASES)
