"""The one launcher: from a command line to a config that says everything, to a run. For all three libraries.

Nothing is added that the dumped config does not show. Order: config < flags < `--cfg-options`.
"""

import argparse
import importlib.util
import inspect
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.logging import MMLogger
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch import nn

from mmsb.checkpoints.load import install_reader, load_state_dict, local_path, require_file
from mmsb.configs import build_model, check_library, read_config
from mmsb.datasets.paths import check_paths
from mmsb.models.weights import check_fit, is_pretrained
from mmsb.options import check_keys, one_line

from .processes import is_restart, rank_in_environment, start_processes
from .safety import RUNNER, output_folders
from .stops import EXIT_PREEMPTED, RunStopped

RUNNER_READS = (  # from the config, beside its own arguments
    'activation_checkpointing',
    'compile',
    'custom_imports',
    'efficient_conv_bn_eval',
    'find_unused_parameters',
    'model_wrapper_cfg',
    'runner_type',
    'sync_bn',
    'trust_checkpoint',  # ours
)
DATALOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


class _KeyValues(DictAction):
    def __call__(self, parser, namespace, values, option_string=None):
        wrong = [value for value in values if '=' not in value]
        if wrong:
            parser.error(f'{option_string} needs KEY=VALUE, got {wrong[0]!r}')
        super().__call__(parser, namespace, values, option_string)


def config_parser(description: str) -> argparse.ArgumentParser:
    """Make the parser of a tool that reads a config and runs nothing."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=_KeyValues,
        default={},
        metavar='KEY=VALUE',
        help='override any key of the config, e.g. model.backbone.depth=101; stronger than the flags',
    )
    parser.set_defaults(work_dir=None, launcher='none', tensorboard=False, trust_checkpoint=False, local_rank=0)
    return parser


def common_parser(description: str) -> argparse.ArgumentParser:
    """Make the parser with what training and testing have in common."""
    parser = config_parser(description)
    parser.add_argument('--work-dir', help='folder of the outputs (default: work_dirs/<name of the config>)')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument(
        '--trust-checkpoint', action='store_true', help='let a checkpoint run code: only for files of your own'
    )
    parser.add_argument('--tensorboard', action='store_true', help='write TensorBoard events beside the logs')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    return parser


def load_config(args: argparse.Namespace, apply_flags: Callable[[Config], None]) -> Config:
    """Read the config and settle what runs: config, then flags, then `--cfg-options`.

    Args:
        args: of `common_parser`.
        apply_flags: writes the other flags into the config.

    Raises:
        FileNotFoundError, ValueError, ImportError: one line that says what to change.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    if not os.path.isfile(args.config):
        raise FileNotFoundError(f'config {args.config!r} does not exist')
    if not args.config.endswith(('.py', '.json', '.yaml', '.yml')):
        raise ValueError(f'config {args.config!r} is not a config: .py, .json or .yaml')
    cfg = read_config(args.config)
    cfg.launcher = args.launcher
    if args.work_dir:
        cfg.work_dir = args.work_dir
    apply_flags(cfg)
    if args.trust_checkpoint:
        cfg.trust_checkpoint = True
    if args.tensorboard:
        _add_tensorboard(cfg)
    known = {*cfg, *inspect.signature(Runner.__init__).parameters, *RUNNER_READS} - {'self', 'cfg'}
    check_keys('config', (key.split('.')[0] for key in args.cfg_options), sorted(known))
    cfg.merge_from_dict(args.cfg_options)
    _add_defaults(cfg)
    if not cfg.get('work_dir'):
        cfg.work_dir = str(Path('work_dirs') / Path(args.config).stem)
    install_reader(trust=bool(cfg.get('trust_checkpoint')), own=output_folders(cfg))
    if os.path.exists(cfg.work_dir) and not os.path.isdir(cfg.work_dir):
        raise FileExistsError(f'work_dir {cfg.work_dir!r} is a file: name a folder')
    return cfg


def _add_tensorboard(cfg: Config) -> None:
    if importlib.util.find_spec('tensorboard') is None:
        raise ImportError('--tensorboard needs the package tensorboard: `pip install tensorboard`')
    visualizer = cfg.setdefault('visualizer', ConfigDict(type='Visualizer'))
    backends = list(visualizer.get('vis_backends') or [ConfigDict(type='LocalVisBackend')])
    if not any('TensorboardVisBackend' in str(backend.get('type')) for backend in backends):
        visualizer.vis_backends = [*backends, ConfigDict(type='TensorboardVisBackend')]


def _add_defaults(cfg: Config) -> None:
    """Write down what would otherwise be left to chance or to one library's own tool."""
    randomness = cfg.get('randomness') or {}
    cfg.randomness = {**randomness, 'seed': 0 if randomness.get('seed') is None else randomness['seed']}
    hooks = list(cfg.get('custom_hooks') or [])
    if not any(hook.get('type') == 'mmsb.ProgressHook' for hook in hooks):
        cfg.custom_hooks = [*hooks, dict(type='mmsb.ProgressHook')]
    logger = cfg.setdefault('default_hooks', ConfigDict()).setdefault('logger', ConfigDict(type='LoggerHook'))
    if logger and logger.get('type') == 'LoggerHook':
        logger.type = 'mmsb.LoggerHook'
    if cfg.get('default_scope') == 'mmpretrain':  # as its own tool does: stack tensors in the workers
        for loader in DATALOADERS:
            if cfg.get(loader):
                cfg[loader].setdefault('collate_fn', dict(type='default_collate'))
    if cfg.launcher != 'none' and not torch.cuda.is_available():
        cfg.setdefault('env_cfg', ConfigDict())
        cfg.env_cfg.dist_cfg = {**(cfg.env_cfg.get('dist_cfg') or {}), 'backend': 'gloo'}
        wrapper = cfg.setdefault('model_wrapper_cfg', ConfigDict(type='MMDistributedDataParallel'))
        wrapper.setdefault('device_ids', None)
        wrapper.setdefault('broadcast_buffers', False)
        wrapper.setdefault('find_unused_parameters', cfg.get('find_unused_parameters', False))


def check_before_run(cfg: Config, loaders: tuple[str, ...]) -> None:
    """Find what is missing or misspelt before anything is written.

    Args:
        cfg: the settled config.
        loaders: the dataloaders that the run uses.

    Raises:
        ImportError: a library is missing.
        FileNotFoundError: a dataset or a checkpoint is missing.
        ValueError, KeyError, TypeError: the model can't be built, or the checkpoint is of another one.
    """
    check_library(cfg)
    check_paths(cfg, loaders)
    start = cfg.get('load_from')
    whole = bool(cfg.get('resume')) or 'train_dataloader' not in loaders
    needed = [start] if start and whole else [*_warm_starts(cfg.to_dict()), *([start] if start else [])]
    for path in needed:
        require_file(path)
    model = build_model(cfg)
    if start and local_path(start):
        _check_start(model, start, whole)


def _check_start(model: nn.Module, path: str, whole: bool) -> None:
    """Check that a checkpoint is of this network: wholly to test or resume it, in some part to fine-tune it.

    The libraries load what fits and warn of the rest: the figures of a test would be those of random weights.
    """
    ours = model.state_dict()
    theirs = load_state_dict(path)
    if whole:
        check_fit(path, ours, theirs)
    elif not any(key in ours and ours[key].shape == value.shape for key, value in theirs.items()):
        raise ValueError(f'checkpoint {path!r} does not fit: none of its {len(theirs)} weights is one of the network')


def _warm_starts(node) -> Iterator[str]:
    """Yield the checkpoints of every `Pretrained` init_cfg in a config."""
    if isinstance(node, dict) and is_pretrained(node) and isinstance(node.get('checkpoint'), str):
        yield node['checkpoint']
    if isinstance(node, (dict, list, tuple)):
        for child in node.values() if isinstance(node, dict) else node:
            yield from _warm_starts(child)


def build_runner(cfg: Config) -> Runner:
    """Build the runner; without a GPU several processes talk through gloo."""
    if cfg.launcher != 'none' and (is_restart() or not torch.cuda.is_available()):
        start_processes(cfg)
    if cfg.get('runner_type') == RUNNER:  # RUNNERS.build would drop it from the config that is dumped
        return RUNNERS.get(RUNNER).from_cfg(cfg)
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


def run_tool(main: Callable[[], None]) -> None:
    """Run a tool; a failure is one line on stderr and exit code 1, or that of the `RunStopped`.

    The traceback is kept in the run's log; with `MMSB_TRACEBACK=1` in the environment it is printed. Of several
    processes the first one speaks; from when the run has begun the others do too, with their tracebacks: they have no
    log, and it may be their failure alone.
    """
    rank = rank_in_environment()
    try:
        main()
    except KeyboardInterrupt:
        sys.exit('interrupted')
    except RunStopped as stop:
        if rank == 0:
            print(f'error: {stop}' if stop.exit_code != EXIT_PREEMPTED else stop, file=sys.stderr)
        sys.exit(stop.exit_code)
    except Exception as error:  # the last stop of the process: nothing is hidden, it is said in one line
        begun = torch.distributed.is_available() and torch.distributed.is_initialized()
        if os.environ.get('MMSB_TRACEBACK') or (rank and begun):
            traceback.print_exc()
        log = _log_traceback()
        if rank == 0 or begun:
            process = f' (process {rank})' if rank else ''
            print(f'error{process}: {one_line(error)}' + (f' (traceback in {log})' if log else ''), file=sys.stderr)
        sys.exit(1)
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _log_traceback() -> str | None:
    """Write the current traceback into the log file of the run, if there is one yet, and return its path."""
    loggers = list(MMLogger._instance_dict.values())
    for handler in loggers[-1].handlers if loggers else []:
        if isinstance(handler, logging.FileHandler):
            handler.stream.write(traceback.format_exc())
            handler.flush()
            return handler.baseFilename
    return None
