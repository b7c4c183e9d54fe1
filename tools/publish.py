"""Publish the weights of a checkpoint: a hash in the name, and a model card beside them; or a folder for timm.

python tools/publish.py work_dirs/run/epoch_100.pth sb-resnet50.pth
python tools/publish.py work_dirs/run/epoch_100.pth sb-resnet50.safetensors --backbone
python tools/publish.py work_dirs/run/epoch_100.pth --timm sb_resnet50
"""

import argparse

from mmsb.checkpoints.card import TO_FILL
from mmsb.checkpoints.load import install_reader
from mmsb.checkpoints.publish import publish_weights
from mmsb.engine.launcher import run_tool
from mmsb.publish_timm import publish_for_timm


def parse_args():
    parser = argparse.ArgumentParser(description='Publish the weights of a checkpoint.')
    parser.add_argument('checkpoint', help='checkpoint file or URL')
    parser.add_argument(
        'out', nargs='?', help='NAME.pth or NAME.safetensors; a hash of the content is added to the name'
    )
    parser.add_argument('--timm', metavar='DIR', help="write a new folder for timm.create_model('local-dir:DIR')")
    parser.add_argument('--backbone', action='store_true', help='keep only the backbone')
    args = parser.parse_args()
    if (args.out is None) == (args.timm is None):
        parser.error('name one output: NAME.pth, NAME.safetensors, or --timm DIR')
    return args


def main() -> None:
    args = parse_args()
    install_reader(everywhere=True)
    if args.timm is not None:
        warning = publish_for_timm(args.checkpoint, args.timm, backbone=args.backbone)
        print(f"{args.timm}: import mmsb; timm.create_model('local-dir:{args.timm}', pretrained=True)")
        if warning:
            print(f'warning: {warning}')
        return
    published = publish_weights(args.checkpoint, args.out, backbone=args.backbone)
    print(published.path)
    if not published.card_is_new:
        print(f'{published.card}: was there, and is kept as it is')
        return
    with open(published.card, encoding='utf-8') as card:
        print(f'{published.card}: fill in the {card.read().count(TO_FILL)} places marked {TO_FILL.strip("*")}')


if __name__ == '__main__':
    run_tool(main)
