"""Export a trained network to ONNX or torch.export, with free batch, height and width, checked at four sizes.

python tools/export.py CONFIG CHECKPOINT OUT.onnx [--backbone] [--input raw] [--output scores] [--size 224x224]

Classifiers and semantic segmenters are exported whole; of detectors the backbone, neck and dense head: boxes and
non-maximum suppression stay outside. `tools/test.py CONFIG OUT.onnx` evaluates the file.
"""

import argparse
import logging
from pathlib import Path

import mmsb  # noqa: F401  # says in one line if the packages below are missing or do not load

# isort: split
from mmengine.config import Config

from mmsb.checkpoints.load import load_state_dict, require_file
from mmsb.configs import build_model, check_library, drop_warm_starts
from mmsb.engine.launcher import config_parser, load_config, run_tool
from mmsb.export import INPUTS, OUTPUTS, check_target, export
from mmsb.models.weights import check_fit


def size(text: str) -> tuple[int, int]:
    """Parse '224x320' into (height, width) in pixels."""
    sides = text.split('x')
    if len(sides) != 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise argparse.ArgumentTypeError(f'must be pixels, height x width, such as 224x320, got {text!r}')
    return int(sides[0]), int(sides[1])


def parse_args():
    parser = config_parser('Export a trained network to ONNX or torch.export.')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('out', help='file to write: .onnx, or .pt2 for torch.export')
    parser.add_argument('--backbone', action='store_true', help='only the backbone, for a head of your own')
    parser.add_argument(
        '--input', choices=INPUTS, default=INPUTS[0], help='raw: pixels from 0 to 255 (default: normalised ones)'
    )
    parser.add_argument(
        '--output',
        choices=OUTPUTS,
        default=OUTPUTS[0],
        help='scores: softmax or sigmoid of the logits (default: logits)',
    )
    parser.add_argument('--size', type=size, metavar='HxW', help='fix height and width; the batch stays free')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    logging.disable(logging.WARNING)  # what the libraries and the exporter say about themselves
    require_file(args.checkpoint)
    check_target(Path(args.out))

    def apply_flags(cfg: Config) -> None:
        drop_warm_starts(cfg.model)

    cfg = load_config(args, apply_flags)
    check_library(cfg)
    model = build_model(cfg)
    state = load_state_dict(args.checkpoint)
    check_fit(args.checkpoint, model.state_dict(), state)
    model.load_state_dict(state)
    model.eval()
    options = dict(backbone=args.backbone, input=args.input, output=args.output)
    export(model, args.out, size=args.size, show=lambda line: print(f'{args.out}: {line}', flush=True), **options)


if __name__ == '__main__':
    run_tool(main)
