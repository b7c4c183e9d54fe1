"""Stand-ins for mmcv's compiled operations, written with torchvision and plain PyTorch: nothing to compile.

MMDetection, MMSegmentation and many of MMPretrain's modules import `mmcv.ops`, which loads the compiled module
`mmcv._ext`. This import fails if mmcv has no such module (`mmcv-lite`, or an mmcv installed without a compiler).
`import mmsb` therefore appends an import finder that supplies `mmcv._ext` where mmcv does not:

    import mmsb  # before importing mmdet, mmseg or mmcv.ops
    from mmdet.apis import init_detector

For a script that does not import mmsb, run `python -m mmsb.ops SCRIPT ARGS`. A compiled `mmcv._ext` always takes
precedence; if it fails to load (for example, because it was built for another PyTorch), its own error is shown.
`MMSB_OPS=off` in the environment turns all of this off.

`ext.py` is the module that mmcv loads; it lists the supported operations. Each module states its sources and how its
operations differ from mmcv's.
"""

import os
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path

EXTENSION = 'mmcv._ext'


class ExtensionFinder(MetaPathFinder):
    """Finds `mmcv._ext` in this package. It is last in `sys.meta_path`, so that a compiled module is found first."""

    def find_spec(self, name: str, path=None, target=None) -> ModuleSpec | None:
        return spec_from_file_location(name, Path(__file__).with_name('ext.py')) if name == EXTENSION else None


def install() -> None:
    """Register the finder once, unless `MMSB_OPS=off`.

    Raises:
        ValueError: `MMSB_OPS` is neither 'on' nor 'off'.
    """
    wanted = os.environ.get('MMSB_OPS', 'on')
    if wanted not in ('on', 'off'):
        raise ValueError(f"environment variable MMSB_OPS must be 'on' or 'off', got {wanted!r}")
    if wanted == 'on' and not any(isinstance(finder, ExtensionFinder) for finder in sys.meta_path):
        sys.meta_path.append(ExtensionFinder())
