"""Test a trained network by its config.

python tools/test.py configs/demo/sb-resnet20_b16-250i_digits-cue.py work_dirs/demo/.../iter_250.pth
"""

from mmengine.config import Config

from mmsb.engine.launcher import build_runner, check_before_run, common_parser, load_config, run_tool
from mmsb.engine.safety import use_safe_runner


def parse_args():
    parser = common_parser('Test a trained network by its config.')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', metavar='FILE.pkl', help='save the predictions')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.out and not args.out.endswith(('.pkl', '.pickle')):
        raise ValueError(f'--out must end in .pkl or .pickle, got {args.out!r}')

    def apply_flags(cfg: Config) -> None:
        cfg.load_from = args.checkpoint
        cfg.resume = False
        if args.out:
            evaluators = cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]
            cfg.test_evaluator = [*evaluators, dict(type='DumpResults', out_file_path=args.out)]

    cfg = load_config(args, apply_flags)
    if 'runner_type' not in cfg:
        use_safe_runner(cfg)
    check_before_run(cfg, ('test_dataloader',))
    build_runner(cfg).test()


if __name__ == '__main__':
    run_tool(main)
