"""Spatial bias: attention-free global context for convolutional networks, built on the OpenMMLab libraries.

Source: Go & Ryu, "Spatial Bias for Attention-free Non-local Neural Networks", arXiv:2302.12505.
"""

import importlib
import importlib.util

_missing = [name for name in ('torch', 'mmengine', 'mmcv') if importlib.util.find_spec(name) is None]
if _missing:
    raise ImportError(
        f'mmsb needs {" and ".join(_missing)}, which is not installed: run `pip install "mmsb[mminstall]"`, '
        'in a checkout `pip install -r requirements/mminstall.txt` (the stock packages work as well)'
    )

from . import ops, timm_registry  # noqa: E402
from .version import __version__  # noqa: E402

ops.install()
timm_registry.install()

_LAZY = {'add_spatial_bias': 'mmsb.models.any_network'}  # where names are whose import would take seconds
_LAZY |= {f'sb_resnet{depth}': 'mmsb.models.classifier' for depth in timm_registry.DEPTHS}

__all__ = ['__version__', *_LAZY]


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(_LAZY[name]), name)
