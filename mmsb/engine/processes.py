"""The start of the processes of a distributed run."""

from datetime import timedelta

import torch
from mmengine.config import Config
from mmengine.dist import init_dist
from mmengine.utils.dl_utils import set_multi_processing


def start_processes(cfg: Config) -> None:
    """Let the processes of a distributed run know each other, as the runner would; without a GPU through gloo."""
    if cfg.launcher == 'none' or torch.distributed.is_initialized():
        return
    if cfg.launcher == 'pytorch' and not torch.cuda.is_available():
        timeout = ((cfg.get('env_cfg') or {}).get('dist_cfg') or {}).get('timeout')
        limit = None if timeout is None else timedelta(seconds=timeout)
        torch.distributed.init_process_group('gloo', timeout=limit)  # mmengine's own way asks for a GPU
    else:
        env_cfg = cfg.get('env_cfg') or {}
        set_multi_processing(**env_cfg.get('mp_cfg', {}), distributed=True)
        init_dist(cfg.launcher, **env_cfg.get('dist_cfg', {}))
