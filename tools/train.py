"""Train a network of MMPretrain, MMDetection or MMSegmentation from its config.

python tools/train.py configs/cifar100/sb-resnet38_b64-300e_cifar100.py --seed 1
"""

import torch
from mmengine.config import Config

from mmsb.engine.data_check import stop_on_bad_data
from mmsb.engine.launcher import build_runner, check_before_run, common_parser, load_config, run_tool
from mmsb.engine.safety import add_safety, require_work_dir, settle_resume


def parse_args():
    parser = common_parser('Train a network from its config.')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='auto|PATH',
        help='resume from the newest valid checkpoint in the work dir (auto, the default value) or from PATH',
    )
    parser.add_argument('--amp', action='store_true', help='use automatic mixed precision (needs a GPU)')
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
        if args.amp:
            if not torch.cuda.is_available():
                raise ValueError('--amp needs a GPU, and none is visible')
            kind = cfg.optim_wrapper.get('type', 'OptimWrapper')
            if kind not in ('OptimWrapper', 'AmpOptimWrapper'):
                raise ValueError(f'--amp supports OptimWrapper, but optim_wrapper.type of the config is {kind!r}')
            cfg.optim_wrapper.type = 'AmpOptimWrapper'
            cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
        if args.auto_scale_lr:
            if not (cfg.get('auto_scale_lr') or {}).get('base_batch_size'):
                raise ValueError('--auto-scale-lr needs auto_scale_lr.base_batch_size in the config')
            cfg.auto_scale_lr.enable = True
        if args.seed is not None:
            if not 0 <= args.seed < 2**32:
                raise ValueError(f'--seed must be at least 0 and below 2**32, got {args.seed}')
            cfg.randomness = {**(cfg.get('randomness') or {}), 'seed': args.seed}

    cfg = load_config(args, apply_flags)
    if not args.stock_hooks:
        add_safety(cfg)
    settle_resume(cfg, args.resume, stock=args.stock_hooks)
    loaders = ('train_dataloader', 'val_dataloader') if cfg.get('val_cfg') is not None else ('train_dataloader',)
    mistake = None
    try:
        check_before_run(cfg, loaders)
    except ValueError as error:
        if not (args.check_data and getattr(error, 'stage', None) in loaders):
            raise
        mistake = error  # the check of the data says more
    if args.check_data:
        stop_on_bad_data(cfg, loaders)
    if mistake:
        raise mistake
    if not args.stock_hooks:
        require_work_dir(cfg)
    build_runner(cfg).train()


if __name__ == '__main__':
    run_tool(main)
