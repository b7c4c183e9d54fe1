"""Fixtures for the benchmark tests: random images."""

from collections.abc import Callable

import pytest
import torch


@pytest.fixture
def pictures() -> Callable:
    """Return a function that makes random images (count, 3, 32, 32) uint8 and labels (count,) below 100."""

    def make(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        images = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
        return images, torch.randint(0, 100, (count,), generator=generator)

    return make
