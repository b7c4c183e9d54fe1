"""The start of the processes of a distributed run."""

import os
import subprocess
from datetime import timedelta

import torch
from mmengine.config import Config
from mmengine.dist import init_dist
from mmengine.utils.dl_utils import set_multi_processing


def start_processes(cfg: Config) -> None:
    """Let the processes of a distributed run know each other, as the runner would; without a GPU through gloo."""
    if cfg.launcher == 'none' or torch.distributed.is_initialized():
        return
    env_cfg = cfg.get('env_cfg') or {}
    options = dict(env_cfg.get('dist_cfg') or {})
    if cfg.launcher == 'pytorch':
        options.update(_fresh_store())
    if cfg.launcher in ('pytorch', 'slurm') and not torch.cuda.is_available():  # mmengine's own way asks for a GPU
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
    """Translate what Slurm tells a process into the variables that PyTorch reads; the first node holds the address."""
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
    """Return the number of this process, as a launcher says it before the processes know each other."""
    return int(os.environ.get('RANK') or os.environ.get('SLURM_PROCID') or 0)


def is_restart() -> bool:
    """Whether torchrun has started this process again after a failure."""
    return int(os.environ.get('TORCHELASTIC_RESTART_COUNT') or 0) > 0


def _fresh_store() -> dict:
    """Keep processes that were started again from the addresses of those before them.

    torchrun hands the same store to all of them, with what the dead ones have written.
    """
    if not is_restart():
        return {}
    store, rank, world_size = next(torch.distributed.rendezvous('env://'))
    attempt = f'attempt_{os.environ["TORCHELASTIC_RESTART_COUNT"]}'
    return dict(store=torch.distributed.PrefixStore(attempt, store), rank=rank, world_size=world_size)
