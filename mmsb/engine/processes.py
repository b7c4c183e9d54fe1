"""Sets up the processes of a distributed run."""

import os
import subprocess
from datetime import timedelta

import torch
from mmengine.config import Config
from mmengine.dist import init_dist
from mmengine.utils.dl_utils import set_multi_processing


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


def rank_in_environment() -> int:
    """Return the rank of this process from the launcher's variables, before the process group exists."""
    return int(os.environ.get('RANK') or os.environ.get('SLURM_PROCID') or 0)


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
