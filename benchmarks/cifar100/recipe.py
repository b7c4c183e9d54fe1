"""A recipe as a classification config says it. What can't be followed to the letter is refused, not left out."""

import bisect
from collections.abc import Mapping
from dataclasses import dataclass

from mmengine.config import Config, ConfigDict

from mmsb.options import check_keys, choose


@dataclass(frozen=True)
class Recipe:
    """What the fast path reads from a config beside the network and the optimiser.

    Args:
        batch_size: images a step; the last step of an epoch takes what is left, or is dropped.
        drop_last: whether it is dropped.
        epochs: of the whole schedule.
        lr: of the first epoch.
        milestones: epochs after which the learning rate is multiplied by gamma.
        gamma: see milestones.
        crop_px: side of the crop, that of the image.
        padding_px: of each border before the crop.
        pad_value: of the padding, in the raw image.
        flip_prob: of a horizontal flip.
        topk: which accuracies are measured.
        test_batch_size: images at once in the evaluation.
    """

    batch_size: int
    drop_last: bool
    epochs: int
    lr: float
    milestones: tuple[int, ...]
    gamma: float
    crop_px: int
    padding_px: int
    pad_value: int
    flip_prob: float
    topk: tuple[int, ...]
    test_batch_size: int

    def lr_of(self, epoch: int) -> float:
        """Give the learning rate of an epoch; the first is 0."""
        return self.lr * self.gamma ** bisect.bisect_right(self.milestones, epoch)

    def steps(self, num_images: int) -> int:
        """Count the steps of an epoch."""
        return num_images // self.batch_size if self.drop_last else -(-num_images // self.batch_size)


def read_recipe(cfg: Config, epochs: int | None = None) -> Recipe:
    """Read the recipe of a classification config.

    Args:
        cfg: config of MMPretrain.
        epochs: of a shorter schedule, with its milestones scaled alike; None: as the config says.

    Raises:
        ValueError: for anything in the config that the fast path does not do.
    """
    cfg = ConfigDict(_without_scopes(cfg.to_dict()))
    loader = _only('train_dataloader', cfg.train_dataloader, ('batch_size', 'dataset', 'sampler', 'drop_last'))
    sampler = loader['sampler']
    if sampler != dict(type='DefaultSampler', shuffle=True):
        raise ValueError(f'sampler of train_dataloader must be a shuffling DefaultSampler, got {sampler}')
    crop, flip = _read_pipelines(cfg)
    wrapper = _only('optim_wrapper', cfg.optim_wrapper, ('type', 'optimizer'))
    choose('optim_wrapper.type', wrapper.get('type', 'OptimWrapper'), ('OptimWrapper',))
    optimizer = _only('optimizer', wrapper['optimizer'], ('type', 'lr', 'momentum', 'weight_decay', 'nesterov'))
    choose('optimizer.type', optimizer['type'], ('SGD',))
    schedule = cfg.param_scheduler
    if not isinstance(schedule, Mapping):
        choose('the number of param_scheduler', len(schedule), (1,))
        schedule = schedule[0]
    schedule = _only('param_scheduler', schedule, ('type', 'by_epoch', 'milestones', 'gamma'))
    choose('param_scheduler.type', schedule['type'], ('MultiStepLR',))
    choose('param_scheduler.by_epoch', schedule.get('by_epoch', True), (True,))
    choose('train_cfg.by_epoch', cfg.train_cfg.get('by_epoch', True), (True,))
    if cfg.get('custom_hooks'):
        raise ValueError(f'custom_hooks are not run on the fast path, got {list(cfg.custom_hooks)}')
    whole = cfg.train_cfg.max_epochs
    if epochs is not None and epochs < 1:
        raise ValueError(f'epochs must be at least 1, got {epochs}')
    epochs = epochs or whole
    return Recipe(
        batch_size=loader['batch_size'],
        drop_last=loader.get('drop_last', False),
        epochs=epochs,
        lr=optimizer['lr'],
        milestones=tuple(max(1, round(milestone * epochs / whole)) for milestone in schedule['milestones']),
        gamma=schedule.get('gamma', 0.1),
        crop_px=crop['crop_size'],
        padding_px=crop['padding'],
        pad_value=crop.get('pad_val', 0),
        flip_prob=flip['prob'],
        topk=tuple(cfg.test_evaluator['topk']),
        test_batch_size=cfg.test_dataloader.batch_size,
    )


def _without_scopes(node):
    """Copy a config without the marks of the library that a part was inherited from."""
    if isinstance(node, Mapping):
        return {key: _without_scopes(value) for key, value in node.items() if key != '_scope_'}
    return [_without_scopes(value) for value in node] if isinstance(node, (list, tuple)) else node


def _only(name: str, options: Mapping, valid: tuple[str, ...]) -> dict:
    """Return options as a dict if the fast path knows all of them; how a loader reads is not its business."""
    reading = ('num_workers', 'persistent_workers', 'pin_memory', 'collate_fn', 'prefetch_factor')
    options = {key: value for key, value in options.items() if not (name.endswith('loader') and key in reading)}
    check_keys(f'{name} on the fast path', options, valid)
    return options


def _read_pipelines(cfg: ConfigDict) -> tuple[dict, dict]:
    train = [dict(step) for step in cfg.train_dataloader.dataset.pipeline]
    types = [step['type'] for step in train]
    if types != ['RandomCrop', 'RandomFlip', 'PackInputs']:
        raise ValueError(f'the training pipeline must be RandomCrop, RandomFlip, PackInputs, got {types}')
    crop = _only('RandomCrop', train[0], ('type', 'crop_size', 'padding', 'pad_val'))
    flip = _only('RandomFlip', train[1], ('type', 'prob', 'direction'))
    for name, value in dict(
        crop_size=crop['crop_size'], padding=crop['padding'], pad_val=crop.get('pad_val', 0)
    ).items():
        if not isinstance(value, int):
            raise ValueError(f'{name} of RandomCrop must be one integer, got {value!r}')
    choose('direction of RandomFlip', flip.get('direction', 'horizontal'), ('horizontal',))
    if not isinstance(flip['prob'], float):
        raise ValueError(f'prob of RandomFlip must be one number, got {flip["prob"]!r}')
    test = [step['type'] for step in cfg.test_dataloader.dataset.pipeline]
    if test != ['PackInputs']:
        raise ValueError(f'the test pipeline must be PackInputs alone, got {test}')
    return crop, flip
