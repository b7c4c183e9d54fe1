"""Draw the effective receptive field of a unit, in a network with spatial bias and in the plain one beside it.

python tools/analysis/receptive_field.py CONFIG CHECKPOINT IMAGE... --out field.png [--stage 2] [--json FILE]

The field is the gradient of the unit with respect to the pixels, averaged over the images. The square is the
theoretical field of the plain network: that of --plain, or the same network, with the same weights, without its bias.
"""

import argparse
import logging
import warnings
from dataclasses import asdict
from pathlib import Path

import mmsb  # noqa: F401  # says in one line if the packages below are missing or do not load

# isort: split
from mmengine.config import Config
from torch import Tensor, nn

from mmsb.analysis import pictures, trained
from mmsb.analysis.receptive_field import SHARES, Unit, field_of, stages_of
from mmsb.analysis.report import check_folders, markdown, write_json
from mmsb.checkpoints.load import require_file
from mmsb.engine.launcher import config_parser, load_config, run_tool
from mmsb.files import write_figure
from mmsb.models import SpatialBias


def parse_args():
    parser = config_parser('Draw the effective receptive field of a unit, with spatial bias and without.')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('images', nargs='+', metavar='IMAGE', help='image files, of one size after the test pipeline')
    parser.add_argument('--out', required=True, metavar='FILE.png', help='figure to write')
    parser.add_argument('--json', metavar='FILE', help='write the figures as JSON')
    parser.add_argument(
        '--plain', nargs=2, metavar=('CONFIG', 'CHECKPOINT'), help='plain network (default: the same without its bias)'
    )
    parser.add_argument('--stage', type=int, help='stage of the unit, from 1 (default: the last with spatial bias)')
    parser.add_argument('--row', type=int, help='row of the unit in the feature map, from 0 (default: the middle)')
    parser.add_argument('--column', type=int, help='column of the unit, from 0 (default: the middle)')
    parser.add_argument('--channel', type=int, help='channel of the unit, from 0 (default: the sum over all)')
    args = parser.parse_args()
    check_folders(parser, args, 'out', 'json')
    return args


def last_with_bias(backbone: nn.Module) -> int:
    """Find the last stage with spatial bias, from 1; without any, the last one."""
    stages = stages_of(backbone)
    parts = [backbone.get_submodule(stage).modules() for stage in stages]
    found = [i for i, modules in enumerate(parts, 1) if any(isinstance(module, SpatialBias) for module in modules)]
    return found[-1] if found else len(stages)


def inputs_of(cfg: Config, model: nn.Module, paths: list[str]) -> list[Tensor]:
    inputs = [trained.read_picture(cfg, model, path).inputs for path in paths]
    for path, image in zip(paths, inputs, strict=True):
        if image.shape != inputs[0].shape:
            sizes = [' x '.join(map(str, one.shape[-2:])) for one in (image, inputs[0])]
            raise ValueError(f'image {path!r} is {sizes[0]} px, and {paths[0]!r} {sizes[1]} px: all must have one size')
    return inputs


def load_networks(args) -> dict[str, tuple[Config, nn.Module]]:
    """Load the networks to compare by name, the plain one first."""
    require_file(args.checkpoint)
    cfg = load_config(args, lambda cfg: None)
    name = Path(args.config).stem.partition('_')[0]
    networks = {name: (cfg, trained.load_trained(cfg, args.checkpoint))}
    if args.plain:
        config, checkpoint = args.plain
        require_file(checkpoint)
        plain = load_config(argparse.Namespace(**{**vars(args), 'config': config, 'cfg_options': {}}), lambda cfg: None)
        plain_name = Path(config).stem.partition('_')[0]
        plain_name = f'plain {plain_name}' if plain_name == name else plain_name
        networks = {plain_name: (plain, trained.load_trained(plain, checkpoint)), **networks}
    elif any(isinstance(module, SpatialBias) for module in networks[name][1].modules()):
        plain = trained.load_trained(cfg, args.checkpoint, bias=False)
        networks = {f'{name} without its bias': (cfg, plain), **networks}
    return networks


def main() -> None:
    args = parse_args()
    logging.disable(logging.WARNING)  # hide what the libraries log while building
    warnings.simplefilter('ignore')
    pictures.check_target(args.out)
    networks = load_networks(args)
    backbones = {name: trained.backbone_of(model) for name, (_, model) in networks.items()}
    stage = last_with_bias(list(backbones.values())[-1]) if args.stage is None else args.stage
    unit = Unit(stage, args.row, args.column, args.channel)
    fields = {
        name: field_of(backbones[name], unit, inputs_of(cfg, model, args.images))
        for name, (cfg, model) in networks.items()
    }
    box = next(iter(fields.values())).theoretical
    count = f'{len(args.images)} image{"s" if len(args.images) > 1 else ""}'
    write_figure(args.out, pictures.draw_fields(fields, box, f'A unit of stage {stage}, {count}'), dpi=130)
    found = {
        name: dict(share_outside=field.outside(box), side_px={str(share): px for share, px in field.sides_px().items()})
        for name, field in fields.items()
    }
    header = ['network', 'outside the theoretical field', *(f'{share * 100:.0f} % within' for share in SHARES)]
    rows = [
        [name, f'{one["share_outside"] * 100:.2g} %', *(f'{px} x {px} px' for px in one['side_px'].values())]
        for name, one in found.items()
    ]
    print(markdown(header, rows))
    if args.json:
        size = next(iter(fields.values())).gradient.shape
        about = dict(unit=asdict(unit), images=args.images, image_px=size, theoretical_px=box)
        write_json(args.json, dict(**about, networks=found))


if __name__ == '__main__':
    run_tool(main)
