"""Spatial bias: attention-free global context for convolutional networks, built on the OpenMMLab libraries.

Source: Go & Ryu, "Spatial Bias for Attention-free Non-local Neural Networks", arXiv:2302.12505.
"""

import importlib.util

_missing = [name for name in ('torch', 'mmengine', 'mmcv') if importlib.util.find_spec(name) is None]
if _missing:
    raise ImportError(
        f'mmsb needs {" and ".join(_missing)}, which is not installed: run `pip install "mmsb[mminstall]"`, '
        'in a checkout `pip install -r requirements/mminstall.txt` (the stock packages work as well)'
    )

from . import ops  # noqa: E402
from .version import __version__  # noqa: E402

ops.install()

__all__ = ['__version__']
