"""Spatial bias: attention-free global context for convolutional networks, built on the OpenMMLab libraries.

Source: Go & Ryu, "Spatial Bias for Attention-free Non-local Neural Networks", arXiv:2302.12505.
"""

import importlib
import importlib.util
import sys
from pathlib import Path


def _what_is_missing() -> str | None:
    """Say in one line what this environment lacks and how to get it; None if it lacks nothing."""
    missing = [name for name in ('torch', 'mmengine', 'mmcv') if importlib.util.find_spec(name) is None]
    if missing:
        return (
            f'mmsb needs {" and ".join(missing)}, which is not installed: run `pip install "mmsb[mminstall]"`, '
            'in a checkout `pip install -r requirements/mminstall.txt` (the stock packages work as well)'
        )
    try:
        from cv2 import imread  # noqa: F401
    except ImportError as error:  # of libGL or NumPy's version; or one of two packages that share the folder is gone
        return (
            f'mmsb needs OpenCV, which does not load here ({" ".join(str(error).split())}): run `pip uninstall -y '
            'opencv-python opencv-python-headless`, then `pip install opencv-python-headless`, which needs no libGL'
        )
    return None


def _runs_our_tool() -> bool:
    """Return whether this process is one of our commands, whose errors are one line, and not somebody's own script."""
    if sys.argv[:1] == ['-m']:  # Python is still looking for the module
        return any(name.split('.')[0] == 'mmsb' for name in sys.orig_argv[: sys.orig_argv.index('-m') + 2])
    package = Path(__file__).resolve().parent
    folders = {package.parent / 'tools', package.parent / 'benchmarks', package / '.mim/tools'}
    script = getattr(sys.modules['__main__'], '__file__', None)
    return script is not None and not folders.isdisjoint(Path(script).resolve().parents)


if (_missing := _what_is_missing()) is not None:
    if _runs_our_tool():
        sys.exit(f'error: {_missing}')
    raise ImportError(_missing)

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
