"""Compare mmcv's compiled kernels with ours: `make test-ops`, in an environment whose mmcv has them.

`python tests/ops/compare.py` writes `tests/golden/ops.npz`, the results of the compiled kernels for seed 0. For the
cases on the grid and at the borders, only the operations of `cases.py` were compiled from the sources of onedl-mmcv
2.3.6, as an extension for PyTorch 2.14 (`-std=c++20`); the values of the others were the same again, and stayed.
"""

from pathlib import Path

import mmcv._ext
import numpy as np
import pytest
import torch
from cases import CASES, run, use_kernels
from test_golden import GOLDEN, check_equal

import mmsb.ops.ext

SEEDS = range(25)


def test_the_kernels_are_compiled():
    assert Path(mmcv._ext.__file__).suffix == '.so'


@pytest.mark.parametrize('name', CASES)
def test_kernels_agree(name, monkeypatch):
    for seed in SEEDS:
        theirs = run(name, seed)
        with monkeypatch.context() as patch:
            use_kernels(patch, mmsb.ops.ext)
            check_equal(name, run(name, seed), {key: value.numpy() for key, value in theirs.items()})


def test_golden_values_are_those_of_the_compiled_kernels():
    with np.load(GOLDEN) as golden:
        assert set(golden) == {f'{name}/{key}' for name in CASES for key in run(name, 0)}
        for name in CASES:
            for key, value in run(name, 0).items():
                np.testing.assert_allclose(golden[f'{name}/{key}'], value.numpy(), rtol=1e-6, atol=1e-6)


def test_roi_align_is_identical_at_the_sizes_of_a_detector(monkeypatch):
    """Compare average RoIAlign bit for bit over 200 random cases of up to 256 channels."""
    from mmcv import ops

    rng = np.random.RandomState(0)
    for _ in range(200):
        channels, height, width = rng.choice([1, 16, 256]), rng.randint(1, 60), rng.randint(1, 60)
        features = torch.from_numpy(rng.standard_normal((2, channels, height, width)).astype(np.float32))
        corners = rng.uniform(-20, 4 * max(height, width), (rng.randint(0, 30), 2, 2))
        rois = np.concatenate([rng.randint(0, 2, (len(corners), 1)), corners.min(1), corners.max(1)], 1)
        arguments = (torch.from_numpy(rois.astype(np.float32)), 7, 0.25, int(rng.choice([0, 2])), 'avg', True)
        theirs = _output_and_gradient(ops.roi_align, features, arguments)
        with monkeypatch.context() as patch:
            use_kernels(patch, mmsb.ops.ext)
            ours = _output_and_gradient(ops.roi_align, features, arguments)
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def _output_and_gradient(roi_align, features, arguments):
    features = features.clone().requires_grad_()
    output = roi_align(features, *arguments)
    output.backward(torch.ones_like(output))
    return output.detach(), features.grad


if __name__ == '__main__':
    test_the_kernels_are_compiled()
    values = {f'{name}/{key}': value.numpy() for name in CASES for key, value in run(name, 0).items()}
    np.savez_compressed(GOLDEN, **values)
    print(f'{len(values)} arrays, {GOLDEN.stat().st_size} bytes: {GOLDEN}')
