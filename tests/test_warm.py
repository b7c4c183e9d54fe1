"""A tool forked from the warm process behaves for its caller like a new process."""

import os
import signal
import subprocess
import sys
import time

import pytest
import warm

pytestmark = pytest.mark.skipif(not hasattr(os, 'fork'), reason='there is nothing to fork')
SCRIPTS = {
    'streams': 'import sys\nprint(sys.stdin.read())\nprint("to stderr", file=sys.stderr)',
    'arguments': 'import sys\nprint(sys.argv, __file__, __name__)',
    'environment': 'import os\nprint(sorted((k, v) for k, v in os.environ.items() if k not in ("_", "PWD")))',
    'folder': 'import os\nprint(os.getcwd())',
    'path': 'import sys\nprint(sys.path)',
    'neighbour': 'import neighbour\nprint(neighbour.__file__)',
    'code': 'import sys\nsys.exit(3)',
    'code beyond a byte': 'import sys\nsys.exit(256 + 7)',
    'code none': 'import sys\nsys.exit()',
    'text as code': 'import sys\nsys.exit("one line")',
    'exit handlers': 'import atexit\natexit.register(print, "over")',
    'threads': 'import threading\nthreading.Timer(0.1, print, ["late"]).start()',
    'SIGKILL': 'import os\nos.kill(os.getpid(), 9)',
    'SIGTERM': 'import os\nprint("before", flush=True)\nos.kill(os.getpid(), 15)',
    'SIGINT': 'import os, signal\nsignal.signal(2, signal.SIG_DFL)\nos.kill(os.getpid(), 2)',
    'handlers': 'import signal\nprint([signal.getsignal(n) for n in (1, 2, 10, 12, 13, 15, 17)])',
    'children': 'import subprocess\nprint(subprocess.run(["true"]).returncode)',
    'libraries': (
        'import torch, mmengine, mmsb.models\n'
        'from mmengine.registry import MODELS, DefaultScope\n'
        'from torch.utils.data import DataLoader\n'
        'class Squares:\n'
        '    def __getitem__(self, i): return i * i\n'
        '    def __len__(self): return 4\n'
        'squares = DataLoader(Squares(), num_workers=2, multiprocessing_context="fork")\n'  # 3.14: by default not
        'print(list(squares), torch.get_num_threads(), torch.cuda.is_available())\n'
        'print(DefaultScope.get_current_instance(), MODELS.get("mmsb.SBResNet"))'
    ),
}  # fmt: skip


def outcome(python: str, arguments: list, folder) -> subprocess.CompletedProcess:
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'ONE': 'more', 'PYTHONPATH': f'{warm.ROOT}:{folder}'}
    done = subprocess.run(
        [python, *arguments], cwd=folder, env=environment, input='from stdin', capture_output=True, text=True
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize('name', SCRIPTS)
def test_as_a_new_process(name, tmp_path):
    (tmp_path / 'neighbour.py').touch()
    (tmp_path / 'script.py').write_text(SCRIPTS[name])
    arguments = [tmp_path / 'script.py', '--option', 'two words']
    assert outcome(warm.python(), arguments, tmp_path) == outcome(sys.executable, arguments, tmp_path)


def test_a_module_as_a_new_process(tmp_path):
    (tmp_path / 'module.py').write_text('import sys\nprint(sys.argv, sys.path, __name__, __spec__.name)')
    arguments = ['-m', 'module', '--option']
    assert outcome(warm.python(), arguments, tmp_path) == outcome(sys.executable, arguments, tmp_path)


def test_an_error_ends_in_its_line(tmp_path):
    (tmp_path / 'script.py').write_text('raise RuntimeError("this one")')
    code, out, err = outcome(warm.python(), ['script.py'], tmp_path)
    assert (code, out, err.splitlines()[-1]) == (1, '', 'RuntimeError: this one')


def test_generators_are_seeded_by_the_system(tmp_path):
    (tmp_path / 'script.py').write_text(
        'import random, numpy, torch\nprint(random.random(), numpy.random.rand(), float(torch.rand(())))'
    )
    one, two = (outcome(warm.python(), ['script.py'], tmp_path)[1].split() for _ in range(2))
    assert all(a != b for a, b in zip(one, two, strict=True))


def test_a_signal_reaches_the_tool(tmp_path):
    (tmp_path / 'script.py').write_text(
        'import signal, sys, time\nsignal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))\n'
        'print("ready", flush=True)\ntime.sleep(60)'
    )
    with subprocess.Popen([warm.python(), tmp_path / 'script.py'], stdout=subprocess.PIPE) as tool:
        assert tool.stdout.readline() == b'ready\n'
        tool.send_signal(signal.SIGUSR1)
        assert tool.wait(30) == 75


def test_a_timeout_ends_the_tool_and_what_it_has_started(tmp_path):
    (tmp_path / 'script.py').write_text(
        'import os, subprocess, time\nworker = subprocess.Popen(["sleep", "60"])\n'
        'print(os.getpid(), worker.pid, flush=True)\ntime.sleep(60)'
    )
    tool = subprocess.Popen([warm.python(), tmp_path / 'script.py'], stdout=subprocess.PIPE, text=True)
    pids = [int(word) for word in tool.stdout.readline().split()]
    tool.kill()
    assert tool.communicate(timeout=30) == ('', None)  # nobody holds the stream any more
    assert tool.returncode == -signal.SIGKILL
    for pid in pids:
        while alive(pid):
            time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
