"""The training recipe of a classification config. What the benchmark would not follow is an error, never ignored."""

import bisect
from dataclasses import dataclass
from types import UnionType

from mmengine.config import Config

from mmsb.options import check_keys

ANY, NUMBER, SEQUENCE = object, int | float, list | tuple
# A type stands for a value that the config must give; ANY may be missing. The other values are fixed, and they are the
# defaults of the libraries.
FOLLOWED = dict(
    train_dataloader=dict(
        batch_size=int,
        sampler=dict(type='DefaultSampler', shuffle=True),
        dataset=dict(
            pipeline=[
                dict(type='RandomCrop', crop_size=32, padding=int, pad_val=0),
                dict(type='RandomFlip', prob=float, direction='horizontal'),
                dict(type='PackInputs'),
            ],
            **dict.fromkeys(('type', 'data_root', 'split', 'test_mode'), ANY),
        ),
        **dict.fromkeys(('num_workers', 'persistent_workers', 'pin_memory', 'prefetch_factor', 'collate_fn'), ANY),
    ),
    data_preprocessor=dict(type=ANY, num_classes=ANY, mean=SEQUENCE, std=SEQUENCE, to_rgb=False),
    model=dict(type='ImageClassifier', backbone=dict, neck=dict, head=dict),
    optim_wrapper=dict(
        type='OptimWrapper', optimizer=dict(type='SGD', lr=NUMBER, momentum=NUMBER, weight_decay=NUMBER, nesterov=bool)
    ),
    param_scheduler=dict(type='MultiStepLR', by_epoch=True, milestones=SEQUENCE, gamma=NUMBER),
    train_cfg=dict(by_epoch=True, max_epochs=int, val_interval=ANY),
)


@dataclass(frozen=True)
class Recipe:
    """What the benchmark takes from a config beside network, normalisation and optimizer.

    The learning rate is that of the first epoch; it is multiplied by gamma after each of the milestones, in epochs. The
    padding is that of each border before the crop.
    """

    batch_size: int
    epochs: int
    lr: float
    milestones: tuple[int, ...]
    gamma: float
    padding_px: int
    flip_prob: float

    def lr_of(self, epoch: int) -> float:
        """Return the learning rate of an epoch, counted from 0."""
        return self.lr * self.gamma ** bisect.bisect_right(self.milestones, epoch)

    def steps(self, num_images: int) -> int:
        """Count the steps of an epoch; the last batch may be smaller."""
        return -(-num_images // self.batch_size)


def read_recipe(cfg: Config, epochs: int | None = None) -> Recipe:
    """Read the recipe of a classification config.

    Args:
        cfg: config for MMPretrain.
        epochs: length of the schedule, with the milestones scaled to it; None: as in the config.

    Raises:
        ValueError: for anything in the config that the benchmark does not do.
    """
    if cfg.get('custom_hooks'):
        raise ValueError(f'custom_hooks do not run in this benchmark, got {list(cfg.custom_hooks)}')
    parts = cfg.to_dict()
    for key, wanted in FOLLOWED.items():
        _check(key, parts.get(key), wanted)
    tested = parts['test_dataloader']['dataset']['pipeline']
    _check('test_dataloader.dataset.pipeline', tested, [dict(type='PackInputs')])
    crop, flip, _ = cfg.train_dataloader.dataset.pipeline
    configured = cfg.train_cfg.max_epochs
    epochs = epochs or configured
    return Recipe(
        batch_size=cfg.train_dataloader.batch_size,
        epochs=epochs,
        lr=cfg.optim_wrapper.optimizer.lr,
        milestones=tuple(max(1, round(epoch * epochs / configured)) for epoch in cfg.param_scheduler.milestones),
        gamma=cfg.param_scheduler.gamma,
        padding_px=crop.padding,
        flip_prob=flip.prob,
    )


def _check(key: str, found, wanted) -> None:
    """Compare a part of a config with what the benchmark follows; `_scope_` says only where MMPretrain's types are."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        check_keys(f'{key} of this benchmark', (name for name in found if name != '_scope_'), wanted)
        for name, part in wanted.items():
            fixed = not isinstance(part, (dict, list, type, UnionType))
            if name in found or not (fixed or part is ANY):
                _check(f'{key}.{name}', found.get(name), part)
    elif isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        for index, (item, part) in enumerate(zip(found, wanted, strict=True)):
            _check(f'{key}.{index}', item, part)
    elif found != wanted and not (isinstance(wanted, (type, UnionType)) and isinstance(found, wanted)):
        raise ValueError(f'{key} must be {getattr(wanted, "__name__", wanted)} in this benchmark, got {found!r}')
