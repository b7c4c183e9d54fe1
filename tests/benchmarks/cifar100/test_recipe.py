"""The recipe matches the config, and the augmented images match MMPretrain's."""

import numpy as np
import pytest
import torch
from mmengine.optim.scheduler import MultiStepLR
from mmpretrain.registry import TRANSFORMS

from benchmarks.cifar100.augment import crop_and_flip, draw
from benchmarks.cifar100.recipe import read_recipe
from benchmarks.cifar100.rows import all_rows, choose_rows
from mmsb.analysis import zoo

BIASED = 'cifar100/sb-resnet38_b64-300e_cifar100.py'


def test_recipe_is_the_papers():
    recipe = read_recipe(zoo.load(BIASED))
    assert (recipe.batch_size, recipe.epochs, recipe.lr, recipe.milestones) == (64, 300, 0.25, (75, 150, 225))
    assert (recipe.padding_px, recipe.flip_prob) == (4, 0.5)
    assert recipe.steps(50000) == 782


def test_learning_rates_are_those_of_the_configs_schedule():
    recipe = read_recipe(zoo.load(BIASED))
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=recipe.lr)
    schedule = MultiStepLR(optimizer, milestones=[75, 150, 225], gamma=0.1)
    for epoch in range(recipe.epochs):
        assert recipe.lr_of(epoch) == pytest.approx(optimizer.param_groups[0]['lr'])
        optimizer.step()
        schedule.step()


def test_shorter_schedule_scales_the_milestones():
    assert read_recipe(zoo.load(BIASED), epochs=12).milestones == (3, 6, 9)
    assert read_recipe(zoo.load(BIASED), epochs=1).lr_of(0) == 0.25


@pytest.mark.parametrize(
    ('changes', 'named'),
    [
        ({'optim_wrapper.clip_grad': dict(max_norm=1)}, "optim_wrapper .*'clip_grad'"),
        ({'optim_wrapper.type': 'AmpOptimWrapper'}, "optim_wrapper.type must be OptimWrapper .*'AmpOptimWrapper'"),
        ({'optim_wrapper.optimizer.dampening': 0.1}, "optimizer .*'dampening'"),
        ({'optim_wrapper.optimizer': dict(type='SGD', lr=0.1, _delete_=True)}, 'optimizer.momentum must be'),
        ({'optim_wrapper.paramwise_cfg': dict(norm_decay_mult=0)}, 'paramwise_cfg'),
        ({'param_scheduler.type': 'CosineAnnealingLR'}, "type must be MultiStepLR .*'CosineAnnealingLR'"),
        ({'param_scheduler.by_epoch': False}, 'param_scheduler.by_epoch must be True .* False'),
        ({'train_dataloader.drop_last': True}, 'drop_last'),
        ({'train_dataloader.sampler.shuffle': False}, 'sampler.shuffle must be True'),
        ({'train_dataloader.dataset.pipeline.0.padding': (4, 2)}, r'pipeline.0.padding must be int .*\(4, 2\)'),
        ({'train_dataloader.dataset.pipeline.0.padding_mode': 'reflect'}, 'padding_mode'),
        ({'train_dataloader.dataset.pipeline.0.pad_val': 7}, 'pad_val must be 0'),
        ({'train_dataloader.dataset.pipeline.1.direction': 'vertical'}, "direction must be horizontal .*'vertical'"),
        ({'train_dataloader.dataset.pipeline': [dict(type='PackInputs')]}, 'pipeline must be'),
        ({'test_dataloader.dataset.pipeline.0.type': 'CenterCrop'}, "test_dataloader.*'CenterCrop'"),
        ({'data_preprocessor.mean': None}, 'data_preprocessor.mean must be'),
        ({'data_preprocessor.to_rgb': True}, 'data_preprocessor.to_rgb must be False'),
        ({'model.train_cfg': dict(augments=dict(type='Mixup', alpha=1.0))}, "model .*'train_cfg'"),
        ({'custom_hooks': [dict(type='EMAHook')]}, 'EMAHook'),
    ],
)
def test_what_the_benchmark_does_not_follow_is_refused(changes, named):
    cfg = zoo.load(BIASED)
    cfg.merge_from_dict(changes)
    with pytest.raises(ValueError, match=named):
        read_recipe(cfg)


def test_rows_are_the_papers_and_their_configs_are_followed():
    rows = all_rows()
    assert [row.name for row in choose_rows(['first'])] == ['resnet-38', 'sb-resnet-38-stages-1-2']
    assert [row.name for row in rows[2:4]] == ['resnet-65', 'sb-resnet-65-stages-1-2']
    assert (rows[1].top1_err, rows[1].top5_err) == ('22.44', '4.99')
    assert len({row.name for row in rows}) == len(rows)
    for config in {row.config for row in rows}:
        read_recipe(zoo.load(config))
    with pytest.raises(ValueError, match=r"did you mean 'resnet-38'"):
        choose_rows(['resnet38'])


def test_crops_and_flips_are_mmpretrains(monkeypatch, pictures):
    images, _ = pictures(40)
    order, *crops = draw(40, read_recipe(zoo.load(BIASED)), seed=3, epoch=5)
    ours = crop_and_flip(images[order], *crops, padding=4)
    pipeline = [TRANSFORMS.build(dict(step)) for step in zoo.load(BIASED).train_dataloader.dataset.pipeline]
    for image, our, top, left, flip in zip(images[order], ours, *crops, strict=True):
        corner = iter([int(top), int(left)])
        side = 'horizontal' if flip else None
        monkeypatch.setattr(np.random, 'randint', lambda low, high, corner=corner: next(corner))
        monkeypatch.setattr(np.random, 'choice', lambda sides, p, side=side: side)
        sample = dict(img=image.permute(1, 2, 0).numpy())
        for transform in pipeline:
            sample = transform(sample)
        assert torch.equal(our, sample['inputs'])


def test_every_corner_and_both_sides_are_equally_likely():
    recipe = read_recipe(zoo.load(BIASED))
    order, tops, lefts, flips = draw(50000, recipe, seed=0, epoch=0)
    assert torch.equal(order.sort().values, torch.arange(50000))
    for offsets in (tops, lefts):
        assert np.bincount(offsets, minlength=9) / 50000 == pytest.approx(np.full(9, 1 / 9), abs=0.006)
    assert flips.double().mean() == pytest.approx(0.5, abs=0.01)


def test_draws_depend_on_seed_and_epoch_alone():
    recipe = read_recipe(zoo.load(BIASED))
    first, again = (draw(50, recipe, seed=0, epoch=1) for _ in range(2))
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[0], draw(50, recipe, seed=1, epoch=0)[0])
    assert not torch.equal(first[0], draw(50, recipe, seed=0, epoch=0)[0])
