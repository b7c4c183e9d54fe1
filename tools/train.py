"""Train a network of MMPretrain, MMDetection or MMSegmentation from its config.

python tools/train.py configs/cifar100/sb-resnet38_b64-300e_cifar100.py --seed 1
"""

import os
import signal
import sys
from importlib.util import find_spec
from runpy import run_path

guards: list = []  # the hooks to which the signals belong from the first iteration on


def leave(number: int, _frame) -> None:
    """Answer a signal before the training: nothing is lost yet. A default handler would not tell it from a crash."""
    name = signal.Signals(number).name
    if any(guard.begun and name in guard.signals for guard in guards):
        return  # the training has ended, and all that is left is to end
    ends = sys.modules.get('mmsb.engine.ends')
    loaded = hasattr(ends, 'wait_for_others')  # else mmsb is still being imported
    if loaded:
        first, code = ends.ends_first(75)
    else:
        folder = find_spec('mmsb').submodule_search_locations[0]
        first, code = run_path(f'{folder}/engine/rank.py')['rank_in_environment']() == 0, 75
    if first:
        os.write(2, f'stopped by {name}, nothing to save: start again with --resume\n'.encode())
    if loaded:
        ends.wait_for_others()
    os._exit(code)


for name in ('SIGTERM', 'SIGUSR1'):  # before the imports, which take seconds
    if hasattr(signal, name):
        signal.signal(getattr(signal, name), leave)

import mmsb  # noqa: F401  # says in one line if the packages below are missing or do not load

# isort: split
from mmengine.config import Config

from mmsb.engine import fast
from mmsb.engine.data_check import stop_on_bad_data
from mmsb.engine.guard import GuardHook
from mmsb.engine.launcher import build_runner, check_before_run, common_parser, load_config, run_tool
from mmsb.engine.safety import add_safety
from mmsb.engine.start import WorkDir, decide_as_stock


def parse_args():
    parser = common_parser('Train a network from its config.')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='auto|PATH',
        help='resume from the newest valid checkpoint in the work dir (auto, the default value) or from PATH',
    )
    fast.add_flags(parser)
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate with the batch size')
    parser.add_argument('--check-data', action='store_true', help='first check every sample, and stop on errors')
    parser.add_argument(
        '--stock-hooks', action='store_true', help="save and resume as mmengine does, with the config's hooks and loops"
    )
    parser.add_argument('--seed', type=int, help='random seed (default: from the config, else 0)')
    return parser.parse_args()


def main() -> None:
    args = parse_args()

    def apply_flags(cfg: Config) -> None:
        fast.apply_flags(cfg, args)
        if args.auto_scale_lr:
            if not (cfg.get('auto_scale_lr') or {}).get('base_batch_size'):
                raise ValueError('--auto-scale-lr needs auto_scale_lr.base_batch_size in the config')
            cfg.auto_scale_lr.enable = True
        if args.seed is not None:
            if not 0 <= args.seed < 2**32:
                raise ValueError(f'--seed must be at least 0 and below 2**32, got {args.seed}')
            cfg.randomness = {**(cfg.get('randomness') or {}), 'seed': args.seed}

    cfg = load_config(args, apply_flags, complete=(lambda _: None) if args.stock_hooks else add_safety)
    work_dir = WorkDir(cfg)
    if args.stock_hooks:
        decide_as_stock(cfg, args.resume)
    else:
        work_dir.decide(args.resume)
    loaders = ('train_dataloader', 'val_dataloader') if cfg.get('val_cfg') is not None else ('train_dataloader',)
    fast.check_device(cfg)
    if args.check_data:
        stop_on_bad_data(cfg, loaders)
    check_before_run(cfg, loaders)
    if args.stock_hooks:
        build_runner(cfg).train()
        return
    with work_dir as start:
        runner = build_runner(cfg)
        guards.extend(hook for hook in runner.hooks if isinstance(hook, GuardHook))
        runner.run_id = start.run
        runner.train()


if __name__ == '__main__':
    run_tool(main)
