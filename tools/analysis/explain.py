"""Show on one page which cells of a picture feed which cells of a network's bias maps.

python tools/analysis/explain.py CONFIG CHECKPOINT IMAGE --out page.html [--blocks layer1 layer2.0]

The page is one file that any browser opens, without network access: choose a stage, a block and a map, point at a cell,
and the cells that feed it light up over the picture. The picture is what the test pipeline of the config makes of it.
"""

import logging
import warnings
from pathlib import Path

from mmsb.analysis import bias_maps, explain, trained
from mmsb.analysis.report import check_folders
from mmsb.checkpoints.load import load_checkpoint, require_file
from mmsb.configs import load_trained
from mmsb.datasets.test_set import class_names
from mmsb.engine.launcher import config_parser, load_config, run_tool
from mmsb.files import write_text


def parse_args():
    parser = config_parser("Show which cells of a picture feed which cells of a network's bias maps.")
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('image', help='image file')
    parser.add_argument('--out', required=True, metavar='FILE.html', help='page to write')
    parser.add_argument(
        '--blocks', nargs='+', metavar='NAME', help='only these blocks or stages, such as layer1 layer2.0'
    )
    args = parser.parse_args()
    if Path(args.out).suffix not in ('.html', '.htm'):
        parser.error(f'--out must end in .html, got {args.out}')
    check_folders(parser, args, 'out')
    return args


def main() -> None:
    args = parse_args()
    logging.disable(logging.WARNING)  # hide what the libraries log while building
    warnings.simplefilter('ignore')
    require_file(args.checkpoint)
    cfg = load_config(args, lambda cfg: None)
    model = load_trained(cfg, args.checkpoint)
    picture = trained.read_picture(cfg, model, args.image)
    recorded = bias_maps.record(trained.backbone_of(model), picture.inputs)
    blocks = explain.choose_blocks(recorded, args.blocks)
    answer = trained.answer_of(model, picture, class_names(cfg, load_checkpoint(args.checkpoint)))
    subtitle = f'{Path(args.config).stem} with the weights of {Path(args.checkpoint).name} on {Path(args.image).name}'
    page = explain.make_page(blocks, picture, answer, subtitle)
    write_text(args.out, page)
    print(f'{args.out}: {len(page) / 1e6:.2f} MB, with {", ".join(block.name for block in blocks)}')


if __name__ == '__main__':
    run_tool(main)
