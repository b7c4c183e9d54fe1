"""What importing mmsb changes in other packages and in the process: what the table in CONTRIBUTING.md says, no more."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEADING = '## What mmsb changes in other packages'

# Runs in a fresh process. All that mmsb imports from other packages has been imported before, so that what they do to
# each other does not count.
PROBE = """
import importlib, inspect, json, os, pkgutil, signal, sys, types, warnings

warnings.simplefilter('ignore')

PACKAGES = ('torch', 'torchvision', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'matplotlib', 'timm', 'cv2')


class AnyOperation(types.ModuleType):  # mmcv as if it were compiled

    def __getattr__(self, name):
        if name.startswith('__'):
            raise AttributeError(name)
        return len


def is_theirs(name):
    return name.partition('.')[0] in PACKAGES


def content(value):
    if isinstance(value, dict):
        return {repr(key): id(held) for key, held in dict.items(value)}  # rcParams chooses a backend when it is asked
    if type(value) in (list, set, tuple):
        return sorted(map(repr, value))
    return id(value)


def attributes(owner, held):
    return {
        f'{owner}.{name}': content(value)
        for name, value in list(held.items())
        if not inspect.ismodule(value) and not name.startswith('__') and type(value).__name__ != '_abc_data'
    }


def state():
    import mmengine
    found = {}
    for name, module in list(sys.modules.items()):
        if not is_theirs(name) or module is None:
            continue
        found |= attributes(name, vars(module))
        for part in list(vars(module).values()):
            if inspect.isclass(part) and is_theirs(part.__module__):
                found |= attributes(f'{part.__module__}.{part.__qualname__}', vars(part))
            elif type(part) is mmengine.Registry:
                found |= attributes(f'mmengine.Registry {part._name}', vars(part))
    found |= {f'os.environ {name}': value for name, value in os.environ.items()}
    found |= {f'signal {number}': repr(signal.getsignal(number)) for number in signal.valid_signals()}
    found |= {f'sys.meta_path {type(finder).__name__}': True for finder in sys.meta_path}
    found |= {'warnings.filters': len(warnings.filters), 'sys.excepthook': id(sys.excepthook), 'sys.path': sys.path[:]}
    import logging, multiprocessing, threading, matplotlib
    found |= {'logging': repr(logging.root.handlers), 'backend': repr(dict.get(matplotlib.rcParams, 'backend'))}
    found |= {'threads': threading.active_count(), 'start method': multiprocessing.get_start_method(allow_none=True)}
    return found


def everything_of_mmsb():
    import mmsb
    for found in pkgutil.walk_packages(mmsb.__path__, 'mmsb.'):
        if not found.name.endswith('__main__'):
            importlib.import_module(found.name)


if len(sys.argv) == 1:
    everything_of_mmsb()
    import mmdet.models, mmseg.models, mmpretrain.models, timm
    print(json.dumps([name for name in sys.modules if is_theirs(name) and name != 'mmcv._ext']))
else:
    sys.modules['mmcv._ext'] = AnyOperation('mmcv._ext')
    for name in json.loads(sys.argv[1]):
        importlib.import_module(name)
    before = state()
    everything_of_mmsb()
    after = state()
    changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    print(json.dumps(sorted(changed)))
"""


def probe(*arguments: str, code: str = PROBE) -> list[str]:
    done = subprocess.run([sys.executable, '-c', code, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_an_import_changes_what_the_table_says():
    changed = probe(json.dumps(probe()))
    table = (ROOT / 'CONTRIBUTING.md').read_text().partition(HEADING)[2].partition('\n## ')[0]
    named = [re.findall('`(.+?)`', line)[0] for line in table.splitlines() if line.startswith('| import |')]
    assert [name for name in changed if not any(name.startswith(one) for one in named)] == []
    assert [one for one in named if not any(name.startswith(one) for name in changed)] == []


@pytest.mark.parametrize(
    'change',
    [
        "import matplotlib; matplotlib.use('pdf')",
        'import torch.nn; torch.nn.Conv2d.forward = len',
        "import os; os.environ['SOMETHING'] = '1'",
        'import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)',
        'from mmengine.runner import CheckpointLoader; CheckpointLoader.register_scheme("https://", len, force=True)',
    ],
)
def test_a_change_would_be_seen(change):
    """The probe looks at packages before and after `import mmsb`; here something else changes one of them."""
    code = PROBE.replace('    everything_of_mmsb()\n    after', f'    {change}\n    after')
    assert probe('["mmengine.runner"]', code=code)
