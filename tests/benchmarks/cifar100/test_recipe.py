"""The recipe is the config's, and the pictures are MMPretrain's."""

import numpy as np
import pytest
import torch
from mmengine.optim.scheduler import MultiStepLR
from mmpretrain.registry import TRANSFORMS

from mmsb.analysis import zoo
from benchmarks.cifar100.augment import augmented_epoch, crop_and_flip, draw
from benchmarks.cifar100.recipe import read_recipe

BIASED = 'cifar100/sb-resnet38_b64-300e_cifar100.py'


def test_recipe_is_the_papers():
    recipe = read_recipe(zoo.load(BIASED))
    assert (recipe.batch_size, recipe.drop_last, recipe.epochs, recipe.lr) == (64, False, 300, 0.25)
    assert (recipe.crop_px, recipe.padding_px, recipe.pad_value, recipe.flip_prob) == (32, 4, 0, 0.5)
    assert (recipe.milestones, recipe.topk) == ((75, 150, 225), (1, 5))
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
        ({'optim_wrapper.clip_grad': dict(max_norm=1)}, 'clip_grad'),
        ({'optim_wrapper.optimizer.dampening': 0.1}, 'dampening'),
        ({'optim_wrapper.paramwise_cfg': dict(norm_decay_mult=0)}, 'paramwise_cfg'),
        ({'param_scheduler.type': 'CosineAnnealingLR'}, 'CosineAnnealingLR'),
        ({'train_dataloader.dataset.pipeline.0.padding_mode': 'reflect'}, 'padding_mode'),
        ({'train_dataloader.dataset.pipeline.1.direction': 'vertical'}, 'direction'),
        ({'custom_hooks': [dict(type='EMAHook')]}, 'EMAHook'),
    ],
)
def test_what_the_fast_path_does_not_do_is_refused(changes, named):
    cfg = zoo.load(BIASED)
    cfg.merge_from_dict(changes)
    with pytest.raises(ValueError, match=named):
        read_recipe(cfg)


def test_crops_and_flips_are_mmpretrains(monkeypatch, pictures):
    recipe = read_recipe(zoo.load(BIASED))
    images, labels = pictures(40)
    drawn = draw(40, recipe, seed=3, epoch=5)
    ours, our_labels = augmented_epoch(images, labels, drawn, recipe)
    pipeline = [TRANSFORMS.build(dict(step)) for step in zoo.load(BIASED).train_dataloader.dataset.pipeline]
    for k in range(40):
        corner = iter([int(drawn.tops[k]), int(drawn.lefts[k])])
        side = 'horizontal' if drawn.flips[k] else None
        monkeypatch.setattr(np.random, 'randint', lambda low, high, corner=corner: next(corner))
        monkeypatch.setattr(np.random, 'choice', lambda sides, p, side=side: side)
        sample = dict(img=images[drawn.order[k]].permute(1, 2, 0).numpy())
        for transform in pipeline:
            sample = transform(sample)
        assert torch.equal(ours[k], sample['inputs'])
    assert torch.equal(our_labels, labels[drawn.order])


def test_padding_has_the_configs_value():
    images = torch.full((1, 3, 32, 32), 9, dtype=torch.uint8)
    corner = torch.tensor([0])
    out = crop_and_flip(images, corner, corner, torch.tensor([True]), padding=4, pad_value=7)
    assert (out[0, :, :4] == 7).all()
    assert (out[0, :, :, -4:] == 7).all(), 'flipped'
    assert (out[0, :, 4:, :-4] == 9).all()


def test_every_corner_and_both_sides_are_as_likely():
    recipe = read_recipe(zoo.load(BIASED))
    drawn = draw(50000, recipe, seed=0, epoch=0)
    assert torch.equal(drawn.order.sort().values, torch.arange(50000))
    for offsets in (drawn.tops, drawn.lefts):
        assert np.bincount(offsets, minlength=9) / 50000 == pytest.approx(np.full(9, 1 / 9), abs=0.006)
    assert drawn.flips.double().mean() == pytest.approx(0.5, abs=0.01)
    again, other = draw(50000, recipe, seed=0, epoch=0), draw(50000, recipe, seed=1, epoch=0)
    assert torch.equal(drawn.order, again.order)
    assert not torch.equal(drawn.order, other.order)
    assert not torch.equal(draw(9, recipe, seed=0, epoch=1).order, draw(9, recipe, seed=1, epoch=0).order)
