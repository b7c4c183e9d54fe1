"""Test a trained network from its config.

python tools/test.py configs/demo/sb-resnet11_b16-250i_digits-mirror.py work_dirs/demo/.../iter_250.pth
python tools/test.py configs/demo/sb-resnet11_b16-250i_digits-mirror.py exported.onnx
"""

import copy
from contextlib import AbstractContextManager
from pathlib import Path
from unittest.mock import patch

import mmsb  # noqa: F401  # says in one line if the packages below are missing or do not load

# isort: split
import numpy as np
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch.nn.modules.batchnorm import _BatchNorm

from mmsb.checkpoints.load import require_file
from mmsb.configs import drop_warm_starts
from mmsb.datasets.test_pipeline import ImagePipeline, to_8_bit
from mmsb.engine.launcher import build_runner, check_before_run, common_parser, load_config, run_tool
from mmsb.engine.safety import use_safe_runner
from mmsb.engine.tta import use_tta
from mmsb.exported import OnnxFile, run_in_onnxruntime
from mmsb.infer.drawn import VISUALIZERS, Names, build_visualizer, draw, suffix_of, write_picture
from mmsb.models.deploy import switch_to_deploy

_OF_HOOKS = (  # options of the libraries' visualization hooks that are not of the drawing
    'type', 'priority', 'enable', 'draw', 'interval', 'show', 'wait_time', 'out_dir', 'test_out_dir', 'backend_args',
)  # fmt: skip


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


class DrawHook(Hook):
    """Draws every prediction beside its truth, each in a file of its own; the libraries' hooks name files alike.

    Args:
        cfg: the complete config. The options of its visualization hook are those of the drawing; the hook is dropped.
        folder: where to.
    """

    def __init__(self, cfg: Config, folder: Path):
        library = cfg.get('default_scope')
        if library not in VISUALIZERS:
            valid = ', '.join(VISUALIZERS)
            raise ValueError(f'--show-dir supports {valid}, but default_scope of the config is {library!r}')
        given = (cfg.get('default_hooks') or {}).pop('visualization', None) or {}
        self._options = {key: value for key, value in given.items() if key not in _OF_HOOKS}
        if library == 'mmdet':
            self._options['pred_score_thr'] = self._options.pop('score_thr', 0.3)
        self._cfg, self._folder = cfg, folder
        self._pipeline = ImagePipeline(cfg, local=False)

    def before_test(self, runner: Runner) -> None:
        self._dataset = runner.test_loop.dataloader.dataset
        with _as_first_process():
            self._visualizer = build_visualizer(self._cfg, self._dataset.metainfo)
        infos = map(self._dataset.get_data_info, range(len(self._dataset)))
        paths = dict.fromkeys(info['img_path'] for info in infos if isinstance(info.get('img_path'), str))
        names = Names(paths)
        self._names = {path: names.choose(path) for path in paths}  # the same in every process

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: dict, outputs: list) -> None:
        for sample in outputs:
            name, image = self._read(sample.get('img_path'), sample.get('sample_idx'))
            with _as_first_process():
                drawn = draw(self._visualizer, image, sample, **self._options)
            write_picture(self._folder / name, drawn)

    def _read(self, path: str | None, index: int | None) -> tuple[str, np.ndarray]:
        """Return the name of a sample's picture and its image, [H, W, 3], 8-bit BGR."""
        if path in self._names:
            return self._names[path] + suffix_of(path), self._pipeline.shown(self._pipeline.load(path, whole=False))
        if path is None and index is not None:  # of a dataset of arrays, which are RGB
            return f'{index:06d}.png', to_8_bit(np.asarray(self._dataset.get_data_info(index)['img']))[..., ::-1]
        raise ValueError("--show-dir needs the files of the images: add 'img_path' to meta_keys of the pipeline")


def _as_first_process() -> AbstractContextManager:
    """Let a visualizer draw in this process too: each has other images, and a visualizer only works in the first."""
    return patch('mmengine.dist.utils.is_main_process', return_value=True)


def dump_results(cfg: Config, path: str) -> None:
    """Add a metric that saves the predictions to the evaluator of the test."""
    evaluator = cfg.get('test_evaluator') or []
    owner, key = (evaluator, 'metrics') if 'metrics' in evaluator else (cfg, 'test_evaluator')
    metrics = owner.get(key) or []
    metrics = [metrics] if isinstance(metrics, dict) else metrics
    owner[key] = [*metrics, dict(type='DumpResults', out_file_path=path)]


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

    cfg = load_config(args, apply_flags)
    if args.out:  # after `--cfg-options`, which know the evaluator as the config has it
        dump_results(cfg, args.out)
    if args.tta and args.show_dir and cfg.get('default_scope') == 'mmpretrain':
        raise ValueError('--show-dir: MMPretrain draws the label, and --tta merges scores but no labels')
    hooks: list[Hook] = [DeployHook()] if args.deploy else []
    if args.show_dir:
        hooks.append(DrawHook(cfg, Path(args.show_dir)))
    if 'runner_type' not in cfg:
        use_safe_runner(cfg)
    drop_warm_starts(cfg.model)
    if args.tta:
        use_tta(cfg)
    check_before_run(cfg, ('test_dataloader',))
    runner = build_runner(cfg)
    if exported:
        run_in_onnxruntime(runner.model.module if args.tta else runner.model, args.checkpoint)
    for hook in hooks:
        runner.register_hook(hook)
    runner.test()


if __name__ == '__main__':
    run_tool(main)
