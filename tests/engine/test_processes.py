"""Which process of a run this is, and which GPU is its own, comes from the launcher that the command names."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import mmengine.device.utils
import pytest
import torch
from chaos.inject import raising
from chaos.pair import GONE, Pair
from chaos.victim import Victim, train, write_config
from torch.overrides import TorchFunctionMode

from mmsb.engine import launcher, processes, start
from mmsb.engine.lock import FILE
from mmsb.engine.rank import rank_in_environment

ROOT = Path(__file__).resolve().parents[2]
EVERYTHING = dict(RANK='1', SLURM_PROCID='2', OMPI_COMM_WORLD_RANK='3')
RANKS = dict(none=0, pytorch=1, slurm=2, mpi=3)
OF_NODE = dict(pytorch='LOCAL_RANK', slurm='SLURM_LOCALID', mpi='OMPI_COMM_WORLD_LOCAL_RANK')


@pytest.mark.parametrize('kind', RANKS)
@pytest.mark.parametrize('words', ['--launcher {}', '--launcher={}', '--launch {}', '--launcher none --launcher {}'])
def test_the_rank_is_that_of_the_named_launcher(kind, words, monkeypatch):
    for name, value in EVERYTHING.items():
        monkeypatch.setenv(name, value)
    options = ['config.py', '--cfg-options', 'a=1', 'launcher=mpi', *words.format(kind).split(), '--seed', '3']
    monkeypatch.setattr(sys, 'argv', ['train.py', *options])
    assert rank_in_environment() == RANKS[kind]
    monkeypatch.delenv([*EVERYTHING][RANKS[kind] - 1])
    assert rank_in_environment() == 0


@pytest.mark.parametrize('argv', [['train.py'], ['train.py', '--launcher'], ['train.py', 'launcher=slurm']])
def test_without_a_named_launcher_a_process_is_the_first(argv, monkeypatch):
    for name, value in EVERYTHING.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, 'argv', argv)
    assert rank_in_environment() == 0


@pytest.mark.parametrize('name', EVERYTHING)
@pytest.mark.parametrize('tool', [('train.py', 'missing.py'), ('test.py', 'missing.py', 'missing.pth')])
def test_variables_of_a_shell_silence_no_error(name, tool, run_tool, tmp_path):
    done = run_tool(*tool, cwd=tmp_path, **{name: '1'})
    assert (done.returncode, done.stderr) == (1, "error: config 'missing.py' does not exist\n")


@pytest.mark.parametrize('name', EVERYTHING)
def test_a_single_run_on_a_node_takes_its_lock_and_warns(name, arena):
    config = write_config(arena / 'config.py', by_epoch=False, steps=1)
    done = train(arena, config, '--work-dir', 'run', environment={name: '1'})
    assert done.code == 0, done.said()
    assert (arena / 'run' / FILE).exists()
    assert done.said().count('warning: the learning rate is for 64 samples a step') == 1


@pytest.mark.parametrize(('options', 'says'), [((), True), (('--launcher', 'slurm'), False)])
def test_a_signal_during_the_imports_is_answered_by_the_first_process(options, says, tmp_path):
    (tmp_path / 'mmengine.py').write_text('import os\nos.kill(os.getpid(), 15)\n')  # as it is imported
    environment = {**os.environ, 'PYTHONPATH': f'{tmp_path}:{ROOT}', 'SLURM_PROCID': '1'}
    command = [sys.executable, ROOT / 'tools/train.py', 'config.py', *options]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 75, done.stderr
    assert done.stderr == 'stopped by SIGTERM, nothing to save: start again with --resume\n' * says


@pytest.mark.parametrize('who', [{0}, {1}, {0, 1}])
def test_a_signal_before_the_first_iteration_is_told_once(who, arena):
    config = write_config(arena / 'config.py', steps=1)

    def of(rank: int, environment: dict[str, str]) -> Victim:
        def before() -> None:
            if rank in who:
                launcher.build_runner = lambda _: os.kill(os.getpid(), signal.SIGTERM)

        arguments = (arena, config, '--work-dir', 'run', '--launcher', 'pytorch')
        return Victim(*arguments, before=before, environment=environment)

    pair = Pair(of)
    codes = pair.wait()
    # without an agent, the store of the run goes with the first process, and the second one can't ask why
    assert codes == ([75, 1] if who == {0} else [75, 75]), pair.said()
    assert pair.lines()[0] == 'stopped by SIGTERM, nothing to save: start again with --resume'
    assert pair.lines()[1:] == [f'error (process 1): {GONE}'][: who == {0}]


class _Gpus(TorchFunctionMode):
    """Two GPUs that aren't there: whatever uses one before the own one was chosen fails, and the rest runs on the CPU.

    Args:
        own: number of the GPU of this process.
    """

    def __init__(self, own: int) -> None:
        super().__init__()
        self._own, self._chosen = own, False

    def install(self) -> None:
        mmengine.device.utils.DEVICE, os.environ['CUDA_VISIBLE_DEVICES'] = 'cuda', '0,1'
        torch.cuda.is_available, torch.cuda.device_count = lambda: True, lambda: 2
        torch.cuda.set_device, torch.cuda._lazy_init = self._set_device, self._use
        torch.cuda.get_device_capability = lambda *_: self._use() or (8, 0)
        torch.compile = lambda function, **_: self._use() or function
        processes.init_dist = self._end
        self.__enter__()

    def _set_device(self, device) -> None:
        assert device == self._own, f'GPU {device} is not that of this process'
        self._chosen = True

    def _use(self, *_) -> None:
        assert self._chosen, 'CUDA is used before the device is set'

    def _end(self, kind: str, **_) -> None:
        self._use()
        print('came to', kind, flush=True)
        os._exit(0)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if str(kwargs.get('device')).startswith('cuda') or any(str(arg).startswith('cuda') for arg in args[1:2]):
            self._use()
            kwargs['device'], args = 'cpu', args[:1]
        return func(*args, **kwargs)


@pytest.mark.parametrize('options', [('--fast',), ('--amp',), ('--compile', '--resume'), ('--fast', '--check-data')])
@pytest.mark.parametrize('kind', OF_NODE)
@pytest.mark.parametrize('rank', [0, 1])
def test_a_process_uses_no_gpu_but_its_own(kind, rank, options, arena):
    config = write_config(arena / 'config.py', steps=1)
    names = dict(pytorch='RANK', slurm='SLURM_PROCID', mpi='OMPI_COMM_WORLD_RANK')
    misleading = {name: str(1 - rank) for name in (*OF_NODE.values(), *names.values())}
    own = {names[kind]: str(rank), OF_NODE[kind]: str(rank)}
    done = train(arena, config, *options, '--launcher', kind, before=_Gpus(rank).install,
                 environment=misleading | own)  # fmt: skip
    assert (done.code, f'came to {kind}' in done.said()) == (0, True), done.said()


def test_slurm_without_a_number_on_the_node_counts_as_mmengine_does(arena):
    config, slurm = write_config(arena / 'config.py', steps=1), dict(SLURM_PROCID='5', LOCAL_RANK='0')
    done = train(arena, config, '--fast', '--launcher', 'slurm', before=_Gpus(5 % 2).install, environment=slurm)
    assert (done.code, 'came to slurm' in done.said()) == (0, True), done.said()


@pytest.mark.parametrize(
    ('variables', 'says'),
    [
        (dict(OMPI_COMM_WORLD_LOCAL_RANK='2'), 'error: process 2 of this node has no GPU of its own: 2 visible'),
        ({}, 'error: --launcher mpi needs OMPI_COMM_WORLD_LOCAL_RANK, the number of the process on its node'),
    ],
)
def test_a_process_without_a_gpu_says_so(variables, says, arena):
    config = write_config(arena / 'config.py', steps=1)
    done = train(arena, config, '--launcher', 'mpi', before=_Gpus(0).install, environment=variables)
    assert done.code == 1
    assert done.said().splitlines()[-1].startswith(says)


def test_the_launcher_is_named_by_its_flag(arena):
    done = train(arena, write_config(arena / 'config.py', steps=1), '--cfg-options', 'launcher=pytorch')
    assert done.code == 1
    assert done.said().splitlines() == ['error: launcher is no key of --cfg-options: use --launcher pytorch']


def test_a_work_dir_that_takes_no_files_is_told_once_and_ends_both(arena):
    """The first process alone looks at the work dir; the other one would wait for it."""
    config = write_config(arena / 'config.py', steps=1)

    def before() -> None:
        start.probe = raising(errno.ENOSPC)

    arguments = (arena, config, '--work-dir', 'run', '--launcher', 'pytorch')
    pair = Pair(lambda _, environment: Victim(*arguments, before=before, environment=environment))
    assert pair.wait() == [74, 74], pair.said()
    (line,) = pair.lines()
    assert "error: work_dir 'run' cannot be written to" in line
