"""Sets up the processes of a distributed run."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
from mmengine.config import Config
from mmengine.dist import init_dist
from mmengine.utils.dl_utils import set_multi_processing
from torch.distributed import distributed_c10d

from .rank import VARIABLES, rank_in_environment
from .stops import RunStopped

PATIENCE = timedelta(days=7)  # how long the other processes wait for a decision of the first one
T = TypeVar('T')


def take_device(launcher: str) -> None:
    """Make the GPU of this process the current one, the same that `init_dist` will choose; call it before CUDA is used.

    A process that uses CUDA without it takes memory of the first GPU, which belongs to another process.

    Raises:
        ValueError: this process has no GPU of its own.
    """
    if launcher not in VARIABLES or not torch.cuda.is_available():
        return
    count, variable = torch.cuda.device_count(), VARIABLES[launcher][1]
    number = os.environ.get(variable, '')
    if not number and launcher == 'slurm':
        number = str(rank_in_environment() % count)
    if not number.isdecimal():
        raise ValueError(
            f'--launcher {launcher} needs {variable}, the number of the process on its node, got {number!r}'
        )
    if int(number) >= count:
        raise ValueError(
            f'process {number} of this node has no GPU of its own: {count} visible ({variable}={number}); '
            'start one process per GPU, and let each see all GPUs of its node'
        )
    torch.cuda.set_device(int(number))


def start_processes(cfg: Config) -> None:
    """Initialise the process group of a distributed run, as the runner would; without a GPU, use gloo."""
    if cfg.launcher == 'none' or torch.distributed.is_initialized():
        return
    env_cfg = cfg.get('env_cfg') or {}
    options = dict(env_cfg.get('dist_cfg') or {})
    if cfg.launcher == 'pytorch':
        options.update(_fresh_store())
    if cfg.launcher in ('pytorch', 'slurm') and not torch.cuda.is_available():  # mmengine's init_dist needs a GPU
        if cfg.launcher == 'slurm':
            os.environ.update(_slurm_variables(options.pop('port', None)))
        seconds = options.pop('timeout', None)
        if seconds is not None:
            options['timeout'] = timedelta(seconds=seconds)
        torch.distributed.init_process_group(**{**options, 'backend': 'gloo'})
    else:
        set_multi_processing(**env_cfg.get('mp_cfg', {}), distributed=True)
        init_dist(cfg.launcher, **options)


def first_process_decides(cfg: Config, decide: Callable[[], T]) -> T:
    """Return in all processes of a run what `decide` returns in the first one, which alone calls it.

    If it raises there, the others exit with the same code, since the first one reports why. They wait in a separate
    process group, because the decision may take longer than the run's timeout of 10 to 30 minutes. The group uses gloo,
    so no GPU is kept waiting.
    """
    start_processes(cfg)
    if not torch.distributed.is_initialized():
        return decide()
    waiting = torch.distributed.new_group(backend='gloo', timeout=PATIENCE)
    answer = [None]  # the decision, and the exit code if there is none
    if torch.distributed.get_rank() == 0:
        try:
            answer = [(decide(), None)]
        except BaseException as error:
            answer = [(None, error.exit_code if isinstance(error, RunStopped) else 1)]
            with contextlib.suppress(RuntimeError):  # another process has ended: this error is the one to report
                torch.distributed.broadcast_object_list(answer, src=0, group=waiting)
            raise
    torch.distributed.broadcast_object_list(answer, src=0, group=waiting)
    decision, code = answer[0]
    if code is not None:
        sys.exit(code)
    return decision


def _slurm_variables(port: int | None) -> dict[str, str]:
    """Translate Slurm's variables into those that PyTorch reads; the first node is the master address."""
    slurm = {name: os.environ[f'SLURM_{name}'] for name in ('PROCID', 'NTASKS', 'NODELIST')}
    address = os.environ.get('MASTER_ADDR')
    if not address:
        command = ['scontrol', 'show', 'hostnames', slurm['NODELIST']]
        address = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    return dict(
        RANK=slurm['PROCID'],
        WORLD_SIZE=slurm['NTASKS'],
        LOCAL_RANK=os.environ.get('SLURM_LOCALID', '0'),
        MASTER_ADDR=address,
        MASTER_PORT=str(port or os.environ.get('MASTER_PORT', 29500)),
    )


def rank() -> int:
    """Return the number of this process in the run, also where a rehearsal hides the others."""
    return distributed_c10d.get_rank() if distributed_c10d.is_initialized() else rank_in_environment()


def world_size() -> int:
    """Return the number of processes of the run, also where a rehearsal hides them from what it builds."""
    return distributed_c10d.get_world_size() if distributed_c10d.is_initialized() else 1


def warn(text: str) -> None:
    """Print a warning line, in the first process only."""
    if rank() == 0:
        print(f'warning: {text}', file=sys.stderr, flush=True)


def is_restart() -> bool:
    """Return whether torchrun has restarted this process after a failure."""
    return int(os.environ.get('TORCHELASTIC_RESTART_COUNT') or 0) > 0


def _fresh_store() -> dict:
    """Give restarted processes a separate key prefix in torchrun's store.

    torchrun reuses one store across restarts, and it still holds the addresses that the dead processes wrote.
    """
    if not is_restart():
        return {}
    store, rank, world_size = next(torch.distributed.rendezvous('env://'))
    attempt = f'attempt_{os.environ["TORCHELASTIC_RESTART_COUNT"]}'
    return dict(store=torch.distributed.PrefixStore(attempt, store), rank=rank, world_size=world_size)
