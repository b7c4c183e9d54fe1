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
from mmengine.registry import MODELS, RUNNERS, init_default_scope
from mmengine.runner import Runner
from torch import nn

from mmsb.models.safe_load import load_state_dict
from mmsb.models.weights import check_fit
from mmsb.options import check_keys

LIBRARIES = {
    'mmpretrain': 'onedl-mmpretrain (or mmpretrain)',
    'mmdet': 'onedl-mmdetection (or mmdet) and mmcv with its compiled ops',
    'mmseg': 'onedl-mmsegmentation (or mmsegmentation)',
}
DATALOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
DATA_HELP = {
    'data/demo': 'make it with `python -m mmsb.datasets.digits`',
    'data/cifar100': 'put cifar-100-python there; in an empty folder it is downloaded',
}


def common_parser(description: str) -> argparse.ArgumentParser:
    """Make the parser with what training and testing have in common."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('config', help='config file')
    parser.add_argument('--work-dir', help='folder of the outputs (default: work_dirs/<name of the config>)')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--tensorboard', action='store_true', help='write TensorBoard events beside the logs')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        metavar='KEY=VALUE',
        help='override any key of the config, e.g. model.backbone.depth=101; stronger than the flags',
    )
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
    cfg = Config.fromfile(args.config)
    cfg.launcher = args.launcher
    if args.work_dir:
        cfg.work_dir = args.work_dir
    apply_flags(cfg)
    if args.tensorboard:
        _add_tensorboard(cfg)
    _add_defaults(cfg)
    known = set(cfg) | set(inspect.signature(Runner.__init__).parameters) - {'self', 'cfg'}
    check_keys('config', (key.split('.')[0] for key in args.cfg_options), sorted(known))
    cfg.merge_from_dict(args.cfg_options)
    if not cfg.get('work_dir'):
        cfg.work_dir = str(Path('work_dirs') / Path(args.config).stem)
    return cfg


def _add_tensorboard(cfg: Config) -> None:
    if importlib.util.find_spec('tensorboard') is None:
        raise ImportError('--tensorboard needs the package tensorboard: `pip install tensorboard`')
    visualizer = cfg.setdefault('visualizer', ConfigDict(type='Visualizer'))
    backends = list(visualizer.get('vis_backends') or [ConfigDict(type='LocalVisBackend')])
    visualizer.vis_backends = [*backends, ConfigDict(type='TensorboardVisBackend')]


def _add_defaults(cfg: Config) -> None:
    """Write down what would otherwise be left to chance or to one library's own tool."""
    randomness = cfg.get('randomness') or {}
    cfg.randomness = {**randomness, 'seed': 0 if randomness.get('seed') is None else randomness['seed']}
    hooks = list(cfg.get('custom_hooks') or [])
    if not any(hook.get('type') == 'mmsb.ProgressHook' for hook in hooks):
        cfg.custom_hooks = [*hooks, dict(type='mmsb.ProgressHook')]
    if cfg.get('default_scope') == 'mmpretrain':  # as its own tool does: stack tensors in the workers
        for loader in DATALOADERS:
            if cfg.get(loader):
                cfg[loader].setdefault('collate_fn', dict(type='default_collate'))
    if cfg.launcher != 'none' and not torch.cuda.is_available():
        cfg.setdefault('env_cfg', ConfigDict())
        cfg.env_cfg.dist_cfg = dict(backend='gloo')
        cfg.model_wrapper_cfg = dict(
            type='MMDistributedDataParallel',
            device_ids=None,
            broadcast_buffers=False,
            find_unused_parameters=cfg.get('find_unused_parameters', False),
        )


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
    scope = cfg.get('default_scope') or 'mmengine'
    if scope in LIBRARIES and importlib.util.find_spec(scope) is None:
        raise ImportError(f'this config needs {scope}, which is not installed: install {LIBRARIES[scope]}')
    if scope == 'mmdet' and importlib.util.find_spec('mmcv._ext') is None:
        raise ImportError(
            'detection needs mmcv with its compiled ops: run `make ops`, or see "Installation" in README.md'
        )
    for loader in loaders:
        for folder in _data_folders((cfg.get(loader) or {}).get('dataset') or {}):
            if not os.path.exists(folder):
                help_text = next((text for root, text in DATA_HELP.items() if folder.startswith(root)), None)
                key = f'{loader}.dataset.data_root'
                raise FileNotFoundError(
                    f'dataset folder {folder!r} of {loader} does not exist: '
                    f'{help_text or f"put the dataset there or say --cfg-options {key}=FOLDER"}'
                )
    for path in _checkpoints(cfg.to_dict()):
        if '://' not in path and not os.path.isfile(path):
            raise FileNotFoundError(f'checkpoint {path!r} does not exist')
    model = build_model(cfg)
    if cfg.get('load_from') and '://' not in cfg.load_from:
        _check_start(model, cfg.load_from, whole='train_dataloader' not in loaders or cfg.get('resume'))


def _check_start(model: nn.Module, path: str, whole: bool) -> None:
    """Check that a checkpoint is of this network: wholly to test or resume it, in some part to fine-tune it.

    The libraries load what fits and warn of the rest: the figures of a test would be those of random weights.
    """
    ours, theirs = model.state_dict(), load_state_dict(path)
    if whole:
        check_fit(path, ours, theirs)
    elif not any(key in ours and ours[key].shape == value.shape for key, value in theirs.items()):
        raise ValueError(f'checkpoint {path!r} does not fit: none of its {len(theirs)} weights is one of the network')


def build_model(cfg: Config) -> nn.Module:
    """Build the network of a config as the runner does: with the config's data preprocessor."""
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    model = dict(cfg.model)
    if cfg.get('data_preprocessor'):
        model.setdefault('data_preprocessor', cfg.data_preprocessor)
    return MODELS.build(model)


def _data_folders(dataset: dict) -> Iterator[str]:
    """Yield the local roots of a dataset config and of those that it wraps."""
    wrapped = dataset.get('dataset') or dataset.get('datasets') or []
    for inner in [wrapped] if isinstance(wrapped, dict) else wrapped:
        yield from _data_folders(inner)
    prefix = dataset.get('data_prefix')
    for folder in (dataset.get('data_root'), prefix if isinstance(prefix, str) else None):
        if folder and '://' not in folder and not dataset.get('download'):
            yield folder
            break


def _checkpoints(node) -> Iterator[str]:
    """Yield the checkpoint paths anywhere in a config: `load_from` and the `Pretrained` of an init_cfg."""
    if isinstance(node, dict):
        if node.get('type') == 'Pretrained' and node.get('checkpoint'):
            yield node['checkpoint']
        if node.get('load_from'):
            yield node['load_from']
        children = node.values()
    else:
        children = node if isinstance(node, (list, tuple)) else ()
    for child in children:
        yield from _checkpoints(child)


def build_runner(cfg: Config) -> Runner:
    """Build the runner; without a GPU several processes talk through gloo."""
    if cfg.launcher == 'pytorch' and not torch.cuda.is_available():
        torch.distributed.init_process_group('gloo')  # mmengine's own way asks for a GPU
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


def run_tool(main: Callable[[], None]) -> None:
    """Run a tool; a failure is one line on stderr and exit code 1.

    The traceback is kept in the run's log; with `MMSB_TRACEBACK=1` in the environment it is printed.
    """
    try:
        main()
    except Exception as error:  # the last stop of the process: nothing is hidden, it is said in one line
        if os.environ.get('MMSB_TRACEBACK'):
            traceback.print_exc()
        log = _log_traceback()
        if os.environ.get('RANK', '0') == '0':
            print(f'error: {_one_line(error)}' + (f' (traceback in {log})' if log else ''), file=sys.stderr)
        sys.exit(1)
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _one_line(error: Exception) -> str:
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error).strip()
    if text.startswith('Caught ') and 'Original Traceback' in text:  # from a worker of a dataloader
        text = text.splitlines()[-1]
    return ' '.join(text.split()) or type(error).__name__


def _log_traceback() -> str | None:
    """Write the current traceback into the log file of the run, if there is one yet, and return its path."""
    if not MMLogger._instance_dict:
        return None
    for handler in MMLogger.get_current_instance().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.stream.write(traceback.format_exc())
            handler.flush()
            return handler.baseFilename
    return None
