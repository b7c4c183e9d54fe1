"""Test a trained network from its config.

python tools/test.py configs/demo/sb-resnet20_b16-250i_digits-cue.py work_dirs/demo/.../iter_200.pth
python tools/test.py configs/demo/sb-resnet20_b16-250i_digits-cue.py exported.onnx
"""

import copy
from pathlib import Path

import mmsb  # noqa: F401  # says in one line if the packages below are missing or do not load

# isort: split
from mmengine.config import Config, ConfigDict
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch.nn.modules.batchnorm import _BatchNorm

from mmsb.checkpoints.load import require_file
from mmsb.configs import drop_warm_starts
from mmsb.engine.launcher import build_runner, check_before_run, common_parser, load_config, run_tool
from mmsb.engine.safety import use_safe_runner
from mmsb.engine.tta import use_tta
from mmsb.exported import OnnxFile, run_in_onnxruntime
from mmsb.models.deploy import switch_to_deploy

PAINTERS = {  # per library: its visualizer and its hook
    'mmpretrain': ('UniversalVisualizer', dict(type='VisualizationHook', enable=True, interval=1)),
    'mmdet': ('DetLocalVisualizer', dict(type='DetVisualizationHook', draw=True)),
    'mmseg': ('SegLocalVisualizer', dict(type='SegVisualizationHook', draw=True, interval=1)),
}
FOLDER_OPTION = {'mmpretrain': 'out_dir', 'mmdet': 'test_out_dir'}  # of the hook; mmseg's visualizer sets the folder


def parse_args():
    parser = common_parser('Test a trained network from its config.')
    parser.add_argument('checkpoint', help='checkpoint file, or a classifier or segmenter exported as .onnx')
    parser.add_argument('--out', metavar='FILE.pkl', help='save the predictions')
    parser.add_argument('--show-dir', metavar='DIR', help='save images with the predictions drawn to this folder')
    parser.add_argument(
        '--tta',
        action='store_true',
        help='merge views of each image: of tta_pipeline, else the image and its flip',
    )
    parser.add_argument('--deploy', action='store_true', help='fold all batch norms before the test')
    return parser.parse_args()


class DeployHook(Hook):
    """Tests a deployed copy: other hooks keep the network, as EMA does, which swaps weights before and after."""

    priority = 'LOWEST'

    def before_test_epoch(self, runner: Runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        model = copy.deepcopy(model)
        model.eval()
        norms = sum(isinstance(module, _BatchNorm) for module in model.modules())
        runner.model = switch_to_deploy(model)
        runner.logger.info(f'deployed: {norms} batch norms are folded')


def draw_predictions(cfg: Config, folder: Path) -> None:
    """Configure the library's own visualization hook to draw every prediction."""
    library = cfg.get('default_scope')
    if library not in PAINTERS:
        raise ValueError(f'--show-dir supports {", ".join(PAINTERS)}, but default_scope of the config is {library!r}')
    visualizer, hook = PAINTERS[library]
    cfg.visualizer = {'type': visualizer, 'name': 'visualizer', **cfg.get('visualizer', {}), 'save_dir': str(folder)}
    cfg.visualizer.setdefault('vis_backends', [dict(type='LocalVisBackend')])
    hooks = cfg.setdefault('default_hooks', ConfigDict())
    where = {FOLDER_OPTION[library]: str(folder)} if library in FOLDER_OPTION else {}
    hooks.visualization = {**(hooks.get('visualization') or {}), **hook, **where}


def main() -> None:
    args = parse_args()
    if args.out and not args.out.endswith(('.pkl', '.pickle')):
        raise ValueError(f'--out must end in .pkl or .pickle, got {args.out!r}')

    exported = args.checkpoint.endswith('.onnx')
    if exported:
        if args.deploy:
            raise ValueError('--deploy is for a checkpoint: what is exported is deployed')
        require_file(args.checkpoint)
        OnnxFile(args.checkpoint)  # a file that can't be read ends the test before anything is written

    def apply_flags(cfg: Config) -> None:
        cfg.load_from = None if exported else args.checkpoint
        cfg.resume = False
        if args.show_dir:
            draw_predictions(cfg, Path(args.show_dir).absolute())
        if args.out:
            evaluators = cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]
            cfg.test_evaluator = [*evaluators, dict(type='DumpResults', out_file_path=args.out)]

    cfg = load_config(args, apply_flags)
    if args.tta and args.show_dir and cfg.default_scope == 'mmpretrain':
        raise ValueError('--show-dir: MMPretrain draws on the image that the network has read, and --tta reads several')
    if 'runner_type' not in cfg:
        use_safe_runner(cfg)
    drop_warm_starts(cfg.model)
    if args.tta:
        use_tta(cfg)
    check_before_run(cfg, ('test_dataloader',))
    runner = build_runner(cfg)
    if exported:
        run_in_onnxruntime(runner.model.module if args.tta else runner.model, args.checkpoint)
    if args.deploy:
        runner.register_hook(DeployHook())
    runner.test()


if __name__ == '__main__':
    run_tool(main)
