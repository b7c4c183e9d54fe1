"""The start of the processes of a distributed run."""

import os
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
    if cfg.launcher == 'pytorch' and not torch.cuda.is_available():  # mmengine's own way asks for a GPU
        seconds = options.pop('timeout', None)
        if seconds is not None:
            options['timeout'] = timedelta(seconds=seconds)
        torch.distributed.init_process_group(**{**options, 'backend': 'gloo'})
    else:
        set_multi_processing(**env_cfg.get('mp_cfg', {}), distributed=True)
        init_dist(cfg.launcher, **options)


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
