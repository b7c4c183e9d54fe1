"""Draw class-activation maps and bias maps over an image, side by side.

python tools/analysis/attention_map.py CONFIG CHECKPOINT IMAGE --out maps.png [--method GradCAM] [--class NAME]

A row for each stage: where its features speak for the class (by the library grad-cam), and the bias maps of its last
block. Detectors have no single class: EigenCAM shows where their features are strong.
"""

import logging
import warnings

import mmsb  # noqa: F401  # says in one line if the packages below are missing or do not load

# isort: split
from torch import nn

from mmsb.analysis import attention, bias_maps, pictures, trained
from mmsb.analysis.receptive_field import stages_of
from mmsb.analysis.report import check_folders
from mmsb.checkpoints.load import load_checkpoint, require_file
from mmsb.datasets.test_set import class_names
from mmsb.engine.launcher import config_parser, load_config, run_tool
from mmsb.files import write_figure


def parse_args():
    parser = config_parser('Draw class-activation maps and bias maps over an image, side by side.')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('image', help='image file')
    parser.add_argument('--out', required=True, metavar='FILE.png', help='figure to write')
    parser.add_argument(
        '--method', choices=attention.METHODS, help='default: GradCAM for classifiers and segmenters, else EigenCAM'
    )
    parser.add_argument('--class', dest='label', metavar='NAME', help='name or number of a class (default: the best)')
    parser.add_argument(
        '--layers', nargs='+', metavar='NAME', help='modules of the backbone, such as layer2 (default: all stages)'
    )
    args = parser.parse_args()
    check_folders(parser, args, 'out')
    return args


def bias_maps_of(backbone: nn.Module, picture: trained.Picture) -> list[bias_maps.BlockMaps]:
    """Record the bias maps of a backbone; none of a plain one."""
    has_bias = any(name.endswith('spatial_bias') for name, _ in backbone.named_modules())
    return bias_maps.record(backbone, picture.inputs) if has_bias else []


def main() -> None:
    args = parse_args()
    logging.disable(logging.WARNING)  # hide what the libraries log while building
    warnings.simplefilter('ignore')
    attention.require_library()
    pictures.check_target(args.out)
    require_file(args.checkpoint)
    cfg = load_config(args, lambda cfg: None)
    model = trained.load_trained(cfg, args.checkpoint)
    backbone = trained.backbone_of(model)
    picture = trained.read_picture(cfg, model, args.image)
    classes = class_names(cfg, load_checkpoint(args.checkpoint))
    label = attention.choose_class(model, args.label, classes)
    layers = args.layers or stages_of(backbone)
    found = {layer: attention.activation_map(model, picture, layer, args.method, label) for layer in layers}
    _, method = found[layers[-1]]
    answer = trained.answer_of(model, picture, classes)
    of = ' of the pixels' if answer.kind == 'segmenter' else ''
    best = f'{answer.rows[0][0]}: {answer.rows[0][1] * 100:.0f} %{of}' if answer.rows else ''
    what = f'{method} for {args.label}' if args.label else method
    maps = {layer: cam for layer, (cam, _) in found.items()}
    figure = pictures.draw_attention(picture.pixels, best, maps, bias_maps_of(backbone, picture), what)
    write_figure(args.out, figure, dpi=130)
    print(f'{args.out}: {", ".join(layers)}')


if __name__ == '__main__':
    run_tool(main)
