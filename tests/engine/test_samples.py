"""A sample that cannot be loaded is named with its files, whatever transform fails."""

import numpy as np
import pytest
from chaos.victim import ROOT, train
from mmengine.dataset import BaseDataset, ConcatDataset
from PIL import Image
from torch.utils.data import DataLoader

from mmsb.datasets.loading import load_sample
from mmsb.engine.exact_data import name_samples

FLAWS = {
    'empty': (b'', 'is empty (0 bytes)'),
    'undecodable': (b'no image', 'is not an image: it starts with'),
    'missing': (None, 'does not exist'),  # which a listing of the folder tells before anything is written
}


def segmenter(arena, flaw: str, loader: str, **options):
    """Write the config of a segmenter, one of whose masks has a flaw; return it and the path of the mask."""
    pytest.importorskip('mmseg.apis')
    split = loader.split('_')[0]
    scenes, masks = arena / 'data/demo/digits-scenes', arena / 'masks'
    masks.mkdir()
    for path in sorted((scenes / 'masks' / split).iterdir())[:2]:
        (masks / path.name).write_bytes(path.read_bytes())
    bad, content = masks / path.name, FLAWS[flaw][0]
    bad.unlink() if content is None else bad.write_bytes(content)
    few = dict(num_workers=0, persistent_workers=False, batch_size=2, dataset=dict(indices=2))
    loaders = dict(train_dataloader=few, val_dataloader=few)
    loaders[loader] = {**few, **options, 'dataset': dict(indices=2, data_prefix=dict(seg_map_path=str(masks)))}
    (arena / 'config.py').write_text(
        f"_base_ = '{ROOT}/configs/demo/fpn_sb-resnet20_b8-200i_digits-scenes.py'\n"
        'train_cfg = dict(max_iters=1, val_interval=1)\n'
        + ''.join(f'{name} = {value}\n' for name, value in loaders.items())
    )
    return arena / 'config.py', bad


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('flaw', FLAWS)
def test_a_bad_mask_is_named_in_training(arena, flaw, workers):
    config, bad = segmenter(arena, flaw, 'train_dataloader', num_workers=workers)
    stopped = train(arena, config, '--work-dir', 'run')
    assert stopped.code == 1
    last = stopped.said().splitlines()[-1]
    assert str(bad) in last
    assert FLAWS[flaw][1] in last
    assert 'Traceback' not in stopped.said()
    assert flaw != 'missing' or not (arena / 'run').exists()


@pytest.mark.parametrize('workers', [0, 2])
def test_a_bad_mask_is_named_in_validation(arena, workers):
    config, bad = segmenter(arena, 'empty', 'val_dataloader', num_workers=workers)
    stopped = train(arena, config, '--work-dir', 'run')
    assert stopped.code == 1
    assert f'sample 1: seg_map_path {str(bad)!r} is empty (0 bytes)' in stopped.said().splitlines()[-1]


class Scenes(BaseDataset):
    """Two samples, of which the second has no label."""

    def load_data_list(self) -> list[dict]:
        return [dict(img_path=f'{number}.png', seg_map_path='s3://masks/a', **more)
                for number, more in enumerate((dict(label=1), {}))]  # fmt: skip


def test_the_files_of_a_sample_are_named_when_a_transform_fails():
    dataset = Scenes(pipeline=[lambda sample: sample['label']], lazy_init=False)
    assert load_sample(dataset, 0) == 1
    for wrapped, index in ((dataset, 1), (ConcatDataset([dataset, dataset]), 3)):
        with pytest.raises(ValueError, match=f'^sample {index}: img_path .1.png. cannot be read: No such'):
            load_sample(wrapped, index)


def test_sound_files_are_named_together(tmp_path):
    for name in ('a.png', 'b.png'):
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / name)
    dataset = Scenes(pipeline=[lambda sample: sample['label']])
    paths = dict(img_path=[str(tmp_path / 'a.png')], seg_map_path=str(tmp_path / 'b.png'))
    dataset.get_data_info = lambda index: paths
    with pytest.raises(
        ValueError, match=r"^sample 0 \(img_path '.*a.png', seg_map_path '.*b.png'\) cannot be .*: label$"
    ):
        load_sample(dataset, 0)


def test_an_error_that_names_the_file_stays_as_it_is():
    def fail(sample: dict):
        raise FileNotFoundError(f'{sample["img_path"]} is gone')

    with pytest.raises(FileNotFoundError, match=r'^0.png is gone$'):
        load_sample(Scenes(pipeline=[fail]), 0)


def test_what_has_no_files_keeps_its_reason():
    with pytest.raises(ValueError, match=r'^sample 7 cannot be loaded: list index out of range$'):
        load_sample([], 7)


@pytest.mark.parametrize('workers', [0, 2])
def test_other_loaders_name_their_samples_too(workers):
    dataset = Scenes(pipeline=[lambda sample: sample['label']])
    loader = name_samples(DataLoader(dataset, batch_size=2, num_workers=workers))
    with pytest.raises(ValueError, match=r"sample 1: img_path '1.png' cannot be read"):
        list(loader)
