"""The launcher for all three libraries: turns a command line into a complete config, and that into a run.

The dumped config shows everything that is added. Precedence: config < flags < `--cfg-options`.
"""

import argparse
import contextlib
import copy
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import mmengine.logging
import torch
from mmengine.config import Config, ConfigDict
from mmengine.model import BaseTTAModel
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch import nn

from mmsb.checkpoints.load import install_reader, load_checkpoint, load_state_dict, local_path, require_file
from mmsb.configs import check_library, drop_warm_starts, read_config
from mmsb.datasets.paths import LOADERS, check_paths
from mmsb.datasets.test_set import class_names
from mmsb.models.weights import check_fit, check_pretrained, is_pretrained
from mmsb.ops import detector_precision
from mmsb.options import check_keys

from . import fast, log_to
from .cfg_options import KeyValues, apply_options
from .dry_run import check_config, dry_run, known_keys
from .ends import end
from .processes import first_process_decides, is_restart, start_processes, take_device, warn, world_size
from .safety import RUNNER, add_hook, is_stock, output_folders


def config_parser(description: str) -> argparse.ArgumentParser:
    """Build the parser of a tool that reads a config but starts no run."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=KeyValues,
        default={},
        metavar='KEY=VALUE',
        help='override any key of the config, e.g. model.backbone.depth=101; takes precedence over the flags',
    )
    parser.set_defaults(work_dir=None, launcher='none', tensorboard=False, trust_checkpoint=False, local_rank=0)
    return parser


def common_parser(description: str) -> argparse.ArgumentParser:
    """Build the parser with the options that training and testing share."""
    parser = config_parser(description)
    parser.add_argument('--work-dir', help='output folder (default: work_dirs/<name of the config>)')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument(
        '--trust-checkpoint', action='store_true', help='let a checkpoint run code; use it only for your own files'
    )
    parser.add_argument('--tensorboard', action='store_true', help='also write TensorBoard events: log_to=tensorboard')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    return parser


def load_config(
    args: argparse.Namespace,
    apply_flags: Callable[[Config], None],
    complete: Callable[[Config], None] = lambda cfg: None,
) -> Config:
    """Read the config, apply the flags and then `--cfg-options`, and add the defaults to what is there.

    The options have the last word over the defaults too.

    Args:
        args: parsed by `config_parser` or `common_parser`.
        apply_flags: writes the tool's own flags into the config.
        complete: adds the tool's own defaults.

    Raises:
        FileNotFoundError, FileExistsError, ValueError, ImportError: one line that says what to change.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    if not os.path.isfile(args.config):
        raise FileNotFoundError(f'config {args.config!r} does not exist')
    if not args.config.endswith(('.py', '.json', '.yaml', '.yml')):
        raise ValueError(f'config {args.config!r} is not a config: it must end in .py, .json, .yaml or .yml')
    if 'launcher' in args.cfg_options:  # read before the config: it decides which process this is
        raise ValueError(f'launcher is no key of --cfg-options: use --launcher {args.cfg_options["launcher"]}')
    take_device(args.launcher)
    cfg = read_config(args.config)
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    apply_flags(cfg)
    if args.trust_checkpoint:
        cfg.trust_checkpoint = True
    if args.tensorboard:
        log_to.add(cfg, 'tensorboard')
    check_keys('config', (key.split('.')[0] for key in args.cfg_options), sorted({*cfg, *known_keys()}))
    apply_options(cfg, args.cfg_options)
    check_config(cfg)
    _add_defaults(cfg)
    complete(cfg)
    apply_options(cfg, {key: value for key, value in args.cfg_options.items() if key != 'train_cfg.by_epoch'})
    if cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / Path(args.config).stem)
    if not cfg.work_dir.strip():
        raise ValueError('work_dir is empty: name a folder, or leave it out for work_dirs/<name of the config>')
    cfg.work_dir = os.path.expanduser(cfg.work_dir)
    install_reader(trust=bool(cfg.get('trust_checkpoint')), own=output_folders(cfg), everywhere=True)
    if os.path.exists(cfg.work_dir) and not os.path.isdir(cfg.work_dir):
        raise FileExistsError(f'work_dir {cfg.work_dir!r} is a file, and must be a folder')
    return cfg


def _add_defaults(cfg: Config) -> None:
    """Write explicit defaults for what would otherwise depend on chance or on one library's own tool."""
    randomness = cfg.get('randomness') or {}
    cfg.randomness = {**randomness, 'seed': 0 if randomness.get('seed') is None else randomness['seed']}
    if randomness.get('deterministic'):  # without it, cuBLAS raises in older PyTorch
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    add_hook(cfg, 'mmsb.ProgressHook')
    log_to.add_backends(cfg)
    logger = cfg.setdefault('default_hooks', ConfigDict()).setdefault('logger', ConfigDict(type='LoggerHook'))
    if logger and is_stock(logger.get('type'), 'LoggerHook'):
        logger.type = 'mmsb.LoggerHook'
    fast.add_hook(cfg)
    if cfg.get('default_scope') == 'mmpretrain':  # as its own tool does: collate batches in the workers, and keep these
        for loader in LOADERS:
            if cfg.get(loader):
                cfg[loader].setdefault('collate_fn', dict(type='default_collate'))
                cfg[loader].setdefault('persistent_workers', bool(cfg[loader].get('num_workers')))
                cfg[loader].setdefault('pin_memory', torch.cuda.is_available())
    if cfg.launcher != 'none' and not torch.cuda.is_available():
        cfg.setdefault('env_cfg', ConfigDict())
        cfg.env_cfg.dist_cfg = {**(cfg.env_cfg.get('dist_cfg') or {}), 'backend': 'gloo'}
        wrapper = cfg.setdefault('model_wrapper_cfg', ConfigDict(type='MMDistributedDataParallel'))
        wrapper.setdefault('device_ids', None)
        wrapper.setdefault('broadcast_buffers', False)
        wrapper.setdefault('find_unused_parameters', cfg.get('find_unused_parameters', False))


def check_before_run(cfg: Config, loaders: tuple[str, ...]) -> None:
    """Find missing files and mistakes in the config before anything is written; the first process rehearses the run.

    Args:
        cfg: the complete config.
        loaders: names of the dataloaders that the run uses.

    Raises:
        ImportError: a library is missing, or the package of a tracker that `log_to` names.
        FileNotFoundError: a dataset or checkpoint is missing.
        ValueError: a mistake in the config, or the checkpoint belongs to another model.
    """
    check_library(cfg)
    log_to.check_installed(cfg)
    with contextlib.suppress(TypeError, AttributeError):  # values of the wrong kind, which the dry run reports
        check_paths(cfg, loaders)
    start = cfg.get('load_from')
    whole = bool(cfg.get('resume')) or 'train_dataloader' not in loaders
    needed = [start] if start and whole else [*_warm_starts(cfg.to_dict()), *([start] if start else [])]
    for path in needed:
        require_file(path)

    def check_weights(model: nn.Module) -> None:
        if start and local_path(start):
            _check_start(model, start, whole)
        if not (start and whole):
            for part in model.modules():
                if getattr(part, 'warm_start', None) is not None:
                    check_pretrained(part, part.warm_start)

    if start and whole:
        cfg = copy.deepcopy(cfg)
        drop_warm_starts(cfg.model)
    first_process_decides(
        cfg, lambda: dry_run(cfg, loaders, check_weights, _learnt(start) if start and whole else None)
    )
    trains = 'train_dataloader' in loaders
    if cfg.launcher == 'none' and torch.cuda.device_count() > 1:
        count = torch.cuda.device_count()
        script = 'dist_train.sh CONFIG' if trains else 'dist_test.sh CONFIG CHECKPOINT'
        warn(f'{count} GPUs are visible and one is used: bash tools/{script} {count} uses all of them')
    if trains:
        _warn_of_batch_size(cfg)


def _warn_of_batch_size(cfg: Config) -> None:
    """Warn if a step has another number of samples than the one that the config's learning rate is for."""
    scaling, size = cfg.get('auto_scale_lr') or {}, cfg.train_dataloader.get('batch_size')
    base, counts = scaling.get('base_batch_size'), cfg.optim_wrapper.get('accumulative_counts', 1)
    if not base or not size:
        return
    step = size * world_size() * counts
    made = f'the learning rate is for {base} samples a step (auto_scale_lr.base_batch_size), and a step has {step}'
    made += f' (batch_size={size}, processes: {world_size()}, accumulative_counts={counts})'
    if scaling.get('enable'):  # MMEngine leaves accumulative_counts out
        if counts > 1:
            scaled = f'--auto-scale-lr scales it to {step // counts}'
            warn(f'{made}: {scaled}, so multiply optim_wrapper.optimizer.lr by {counts}')
    elif step != base:
        cure = 'pass --auto-scale-lr' if counts == 1 else f'multiply optim_wrapper.optimizer.lr by {step / base:g}'
        warn(f'{made}: {cure}, or set auto_scale_lr.base_batch_size={step} if it is right')


def _learnt(path: str) -> tuple[str, Sequence[str]] | None:
    """Return the path of a local checkpoint and the names of the classes that it knows, if it has any."""
    classes = class_names(Config(), load_checkpoint(path, keep=True)) if local_path(path) else ()
    return (path, classes) if classes else None


def _check_start(model: nn.Module, path: str, whole: bool) -> None:
    """Check that a checkpoint fits this network: entirely for a test or resume, at least in part for fine-tuning.

    The libraries load what fits and only warn about the rest, so a test could report the results of random weights.
    """
    ours = (model.module if isinstance(model, BaseTTAModel) else model).state_dict()
    theirs = load_state_dict(path, keep=whole)
    if whole:
        check_fit(path, ours, theirs)
    elif not any(key in ours and ours[key].shape == value.shape for key, value in theirs.items()):
        raise ValueError(f'checkpoint {path!r} does not fit: none of its {len(theirs)} weights matches the network')


def _warm_starts(node) -> Iterator[str]:
    """Yield the checkpoints of every `Pretrained` init_cfg in a config."""
    if isinstance(node, dict) and is_pretrained(node) and isinstance(node.get('checkpoint'), str):
        yield node['checkpoint']
    if isinstance(node, (dict, list, tuple)):
        for child in node.values() if isinstance(node, dict) else node:
            yield from _warm_starts(child)


def build_runner(cfg: Config) -> Runner:
    """Build the runner; without a GPU, several processes communicate through gloo."""
    if cfg.launcher != 'none' and (is_restart() or not torch.cuda.is_available()):
        start_processes(cfg)
    if cfg.get('runner_type') == RUNNER:  # RUNNERS.build would drop it from the dumped config
        return RUNNERS.get(RUNNER).from_cfg(cfg)
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


def run_tool(main: Callable[[], None]) -> None:
    """Run a tool; report a failure as one line on stderr, with exit code 1 or that of the `RunStopped`.

    The traceback goes to the run's log, and is printed too if `MMSB_TRACEBACK` is set in the environment. In a
    distributed run, the process that fails first reports: the others can only tell that it is gone. Each ends without
    waiting for another.

    From its start, checkpoints are data for MMEngine too, and the coordinates of detectors stay in float32.
    """
    install_reader()
    detector_precision.install()
    try:
        with _without_notice_of_onedl():
            main()
    except (Exception, KeyboardInterrupt, SystemExit) as error:  # the top of the process: each is reported, as one line
        end(error)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextlib.contextmanager
def _without_notice_of_onedl() -> Iterator[None]:
    """Leave out the line that the libraries print, as they are imported, about an optional package that is missing."""
    print_log = mmengine.logging.print_log

    def print_others(msg, *args, **kwargs) -> None:
        if not str(msg).startswith('Could not import OneDL'):
            print_log(msg, *args, **kwargs)

    mmengine.logging.print_log = print_others
    try:
        yield
    finally:
        mmengine.logging.print_log = print_log
