"""The configs of docs/own_dataset.md, from the data to a trained network that is looked at, on few and small images."""

import json
import re
from pathlib import Path

import pytest
import scenes

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r'^```(?:python|\{code-block\} python)\n(_base_ = .*?)^```', re.DOTALL | re.MULTILINE)
CONFIGS = dict(
    zip(
        ('classifier', 'detector', 'segmenter'),
        BLOCK.findall((ROOT / 'docs/own_dataset.md').read_text()),
        strict=True,
    )
)
SMALL = ['model.backbone.init_cfg=None', 'train_dataloader.batch_size=2'] + [
    f'{loader}_dataloader.{option}'
    for loader in ('train', 'val', 'test')
    for option in ('num_workers=0', 'persistent_workers=False', 'dataset.indices=4')
]
SMALL_OF = {
    'classifier': ['train_cfg.max_epochs=1'],
    'detector': [
        'train_cfg.max_epochs=1',
        'train_dataloader.dataset.pipeline.2.scale=(128,128)',
        'val_dataloader.dataset.pipeline.1.scale=(128,128)',
        'test_dataloader.dataset.pipeline.1.scale=(128,128)',
        *scenes.options('val', 4),
        *scenes.options('test', 4),
    ],
    'segmenter': [
        'train_cfg.max_iters=2',
        'train_cfg.val_interval=2',
        'default_hooks.checkpoint.interval=2',
        'model.data_preprocessor.size=(64,64)',
        'train_dataloader.dataset.pipeline.2.scale=(128,128)',
        'train_dataloader.dataset.pipeline.3.crop_size=(64,64)',
        'val_dataloader.dataset.pipeline.1.scale=(128,128)',
        'test_dataloader.dataset.pipeline.1.scale=(128,128)',
    ],
}
IMAGES = {
    'classifier': 'digits/val/0/*.png',
    'detector': 'digits-scenes/images/val/*.png',
    'segmenter': 'digits-scenes/images/val/*.png',
}


@pytest.mark.parametrize('task', CONFIGS)
def test_a_config_of_the_page_goes_from_data_to_a_network(task, arena, run_tool):
    assert CONFIGS[task].count('\n') < 20
    own = arena / 'configs/own'
    own.mkdir(parents=True)
    for base in ('_base_', 'ade20k'):
        (own.parent / base).symlink_to(ROOT / 'configs' / base)
    config = own / f'{task}.py'
    config.write_text(CONFIGS[task])

    def do(tool: str, *arguments) -> str:
        done = run_tool(tool, config, *arguments, '--cfg-options', *SMALL, *SMALL_OF[task], cwd=arena)
        assert done.returncode == 0, f'{tool}: {done.stderr}{done.stdout[-2000:]}'
        return done.stdout

    do('check_data.py')
    do('train.py', '--auto-scale-lr', '--work-dir', 'run')
    (checkpoint,) = (path for path in (arena / 'run').glob('*.pth') if path.name.startswith(('epoch_', 'iter_')))
    image = min((arena / 'data/demo').glob(IMAGES[task]))
    do('infer.py', checkpoint, image, '--out', 'predictions')
    found = json.loads((arena / 'predictions/predictions.json').read_text())
    assert len(found['images']) == 1
    assert not found['skipped']
    assert {category['name'] for category in found['categories']} <= set(re.findall(r"'(\w+)'", CONFIGS[task]))
    do('analysis/explain.py', checkpoint, image, '--out', 'page.html')
    assert 'layer1' in (arena / 'page.html').read_text()
    if task == 'classifier':
        do('export.py', checkpoint, 'network.onnx')
        assert (arena / 'network.onnx').stat().st_size > 1_000_000
