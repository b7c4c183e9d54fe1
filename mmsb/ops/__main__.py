"""Run a script with the stand-ins for mmcv's compiled operations: `python -m mmsb.ops SCRIPT ARGS`.

For scripts that do not import mmsb, such as MMDetection's own `tools/train.py`.
"""

import os
import runpy
import sys

import mmsb  # noqa: F401  installs the stand-ins


def main() -> None:
    if len(sys.argv) < 2 or not os.path.isfile(sys.argv[1]):
        got = f', got {sys.argv[1]!r}' if len(sys.argv) > 1 else ''
        sys.exit(f'usage: python -m mmsb.ops SCRIPT ARGS; SCRIPT must be a Python file{got}')
    del sys.argv[0]
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name='__main__')


if __name__ == '__main__':
    main()
