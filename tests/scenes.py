"""The demo's data, with annotation files of the first scenes: a COCO metric evaluates all images of its file."""

import json
from pathlib import Path

from mmsb.datasets import digits

FIRST = {count: f'annotations/first_{count}.json' for count in (2, 4)}  # of the validation
FOUR_SCENES = f"""
val_dataloader['dataset']['ann_file'] = '{FIRST[4]}'
val_evaluator = dict(ann_file='data/demo/digits-scenes/{FIRST[4]}')
"""  # of a config


def options(split: str, count: int) -> tuple[str, str]:
    """Return the options that evaluate a split on the first scenes."""
    file = f'data/demo/digits-scenes/{FIRST[count]}'
    return f'{split}_dataloader.dataset.ann_file={FIRST[count]}', f'{split}_evaluator.ann_file={file}'


def write(folder: Path) -> None:
    """Write data/demo below a folder."""
    digits.write(folder / 'data/demo')
    scenes = folder / 'data/demo/digits-scenes'
    for count, name in FIRST.items():
        content = json.loads((scenes / 'annotations/instances_val.json').read_text())
        content['images'] = content['images'][:count]
        kept = {image['id'] for image in content['images']}
        content['annotations'] = [one for one in content['annotations'] if one['image_id'] in kept]
        (scenes / name).write_text(json.dumps(content))
