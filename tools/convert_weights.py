"""Convert a plain ResNet's weights, or those of the method's authors, to a checkpoint of a classification config.

The result computes the same function, with spatial bias too: a classifier ready for testing, fine-tuning or prediction.

python tools/convert_weights.py configs/imagenet/sb-resnet50_b256-100e_in1k.py resnet50.pth sb-resnet50.pth
"""

import argparse
import logging
from pathlib import Path

import mmsb  # noqa: F401  # says in one line if the packages below are missing or do not load

# isort: split
import torch
from mmengine.runner import set_random_seed

from mmsb.checkpoints.load import require_file
from mmsb.configs import build_model, read_config
from mmsb.engine.launcher import run_tool
from mmsb.files import write_whole
from mmsb.models.weights import load_head
from mmsb.version import __version__


def parse_args():
    parser = argparse.ArgumentParser(description="Convert plain weights, or the authors', to a checkpoint of a config.")
    parser.add_argument('config', help='classification config with an mmsb backbone')
    parser.add_argument('checkpoint', help='weights with the head: from torchvision, timm, MMPretrain or the authors')
    parser.add_argument('out', help='file to write')
    parser.add_argument('--seed', type=int, default=0, help='seed of the new weights (default: %(default)s)')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    logging.disable(logging.INFO)  # hide what the libraries log while initialising
    require_file(args.checkpoint)
    out = Path(args.out)
    if not out.parent.is_dir():
        raise FileNotFoundError(f'the folder of the output {args.out!r} does not exist')
    cfg = read_config(args.config)
    backbone = cfg.model.get('backbone') or {}
    if cfg.get('default_scope') != 'mmpretrain' or not str(backbone.get('type')).startswith('mmsb.'):
        raise ValueError(f'config {args.config!r} is not a classifier with an mmsb backbone')
    backbone.init_cfg = dict(type='Pretrained', checkpoint=args.checkpoint)
    set_random_seed(args.seed)
    model = build_model(cfg)
    model.init_weights()
    load_head(model, args.checkpoint)
    meta = dict(mmsb_version=__version__, converted_from=args.checkpoint, seed=args.seed)
    checkpoint = dict(meta=meta, state_dict=model.state_dict())
    write_whole(out, lambda unfinished: torch.save(checkpoint, unfinished))
    print(f'{out}: {sum(p.numel() for p in model.parameters()):,} parameters')


if __name__ == '__main__':
    run_tool(main)
