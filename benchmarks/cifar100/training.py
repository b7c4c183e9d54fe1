"""Trainings from start to end: side by side on the streams of one device, within a budget of time, resumed.

Each training writes its record, ROW_seedN.json, and its checkpoint, ROW_seedN.pth, into the work dir. The checkpoint
has the weights as MMEngine stores them (`tools/test.py` reads it), the momentum, and what identifies the training. What
is random in an epoch depends on seed and epoch alone, so no state of a generator is stored.
"""

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from mmengine.runner import set_random_seed
from torch import Tensor

from benchmarks.cifar100.augment import crop_and_flip, draw
from benchmarks.cifar100.recipe import read_recipe
from benchmarks.cifar100.rows import Row
from benchmarks.cifar100.table import write_table
from benchmarks.cifar100.trainer import Trainer
from mmsb.analysis import zoo
from mmsb.analysis.machine import cpu_name
from mmsb.analysis.report import write_json
from mmsb.checkpoints.load import load_checkpoint
from mmsb.configs import build_model
from mmsb.datasets import cifar
from mmsb.files import write_whole

MARGIN = 1.2  # an epoch may take this much longer than the longest so far


class Training:
    """One network and seed; continues from its checkpoint if there is one.

    Args:
        row: what to train.
        seed: of the initial weights and of every epoch.
        options: of the command line.
        train: images (n, 3, H, W) uint8 and labels (n,), on the device.
        test: the same of the test set.

    Raises:
        ValueError: if the checkpoint belongs to another training.
    """

    def __init__(
        self,
        row: Row,
        seed: int,
        options: argparse.Namespace,
        train: tuple[Tensor, Tensor],
        test: tuple[Tensor, Tensor],
    ):
        self.seed, self.options, self.train, self.test = seed, options, train, test
        cfg = zoo.load(row.config, row.backbone_options)
        self.recipe = read_recipe(cfg, options.epochs)
        self.steps = self.recipe.steps(len(train[0]))
        set_random_seed(seed)
        model = build_model(cfg)
        model.init_weights()
        how = dict(mode=options.mode, precision=options.precision, channels_last=not options.contiguous)
        self.trainer = Trainer(model.to(options.device), cfg, **how)
        self.path = Path(options.work_dir) / f'{row.name}_seed{seed}.pth'
        self.identity = dict(  # a checkpoint to resume from must agree in all of it
            row=row.name,
            config=row.config,
            backbone_options=row.backbone_options,
            seed=seed,
            images=len(train[0]),
            precision=options.precision,
            recipe=asdict(self.recipe),
        )
        on_gpu = options.device.type == 'cuda'
        cpu = f'{cpu_name()}, {torch.get_num_threads()} thread(s)'
        self.about = asdict(row) | self.identity
        self.about |= dict(
            first_classes=options.subset_classes,
            as_paper=options.subset_classes is None and self.recipe.epochs == cfg.train_cfg.max_epochs,
            mode=options.mode,
            machine=torch.cuda.get_device_name(options.device) if on_gpu else cpu,
            torch=torch.__version__,
        )
        self.history: list[dict] = []
        self.failure = ''
        if self.path.is_file():
            self._resume()

    @property
    def done(self) -> bool:
        return len(self.history) >= self.recipe.epochs or bool(self.failure)

    def _resume(self) -> None:
        checkpoint = load_checkpoint(self.path, own=True)
        found = checkpoint['meta'].get('run') or {}
        if differs := [key for key, value in self.identity.items() if found.get(key) != value]:
            raise ValueError(f'{str(self.path)!r} was trained with another {differs[0]}: choose another work dir')
        with self.trainer.on_stream():
            self.trainer.load(checkpoint['state_dict'], checkpoint['momentum'])
        self.history = checkpoint['meta']['history']

    def start_epoch(self) -> None:
        self.started = time.perf_counter()
        images, labels = self.train
        drawn = draw(len(images), self.recipe, seed=self.seed, epoch=len(self.history))
        order, *crops = (part.to(images.device) for part in drawn)
        self.images = crop_and_flip(images[order], *crops, padding=self.recipe.padding_px)
        self.labels = labels[order]
        self.trainer.start_epoch(self.recipe.lr_of(len(self.history)))

    def step(self, index: int) -> None:
        batch = slice(index * self.recipe.batch_size, (index + 1) * self.recipe.batch_size)
        self.trainer.step(self.images[batch], self.labels[batch])

    def wait(self, side_by_side: int) -> None:
        """Wait for the steps of the epoch and note their figures."""
        lr, loss = self.recipe.lr_of(len(self.history)), self.trainer.loss_sum.item() / len(self.images)
        train_s = round(time.perf_counter() - self.started, 3)
        epoch = len(self.history) + 1
        self.history.append(dict(epoch=epoch, lr=lr, loss=loss, train_s=train_s, side_by_side=side_by_side))

    def end_epoch(self) -> None:
        """Test, save and record what is due."""
        entry, epoch = self.history[-1], len(self.history)
        if epoch % self.options.eval_every == 0 or epoch == self.recipe.epochs:
            errors = self.trainer.evaluate(*self.test)
            entry |= {f'top{k}_err': round(error, 4) for k, error in errors.items()}
        if not math.isfinite(entry['loss']):
            self.failure = f'the loss is {entry["loss"]} after epoch {epoch}'
        elif epoch % self.options.save_every == 0 or self.done:
            self.save()
        record = self.about | dict(epochs_done=epoch, failure=self.failure, history=self.history)
        write_json(self.path.with_suffix('.json'), record)
        line = ' '.join(f'{key} {value:.4g}' for key, value in entry.items())
        print(f'{self.path.stem}: {line}' + (f' FAILED: {self.failure}' if self.failure else ''), flush=True)

    def save(self) -> None:
        """Write the checkpoint, on the CPU and in the contiguous memory format."""

        def plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

        meta = dict(run=self.identity, history=self.history, epoch=len(self.history))
        weights, momentum = plain(self.trainer.model.state_dict()), plain(self.trainer.momentum())
        checkpoint = dict(meta=meta, state_dict=weights, momentum=momentum)
        write_whole(self.path, lambda unfinished: torch.save(checkpoint, unfinished))


def train_all(rows_and_seeds: Sequence[tuple[Row, int]], options: argparse.Namespace) -> None:
    """Train networks in the order given, `options.streams` side by side, until all are done or the time is up.

    Raises:
        FileNotFoundError: if the data is missing.
        ValueError: see Training.
    """
    deadline = math.inf if options.budget_s is None else time.monotonic() + options.budget_s
    torch.backends.cudnn.benchmark = True
    splits = [_load(options, split) for split in ('train', 'test')]
    Path(options.work_dir).mkdir(parents=True, exist_ok=True)
    waiting, active, longest_s = list(rows_and_seeds), [], 0.0
    while True:
        active = [training for training in active if not training.done]
        while waiting and len(active) < options.streams:
            training = Training(*waiting.pop(0), options, *splits)
            active += [] if training.done else [training]
        if not active:
            return
        started = time.monotonic()
        if started + MARGIN * longest_s > deadline:
            for training in _on_streams(active):
                training.save()
            print('the time is up: the same command continues from here', flush=True)
            return
        _train_epoch(active)
        write_table(options.work_dir)
        longest_s = max(longest_s, time.monotonic() - started)


def _train_epoch(active: Sequence[Training]) -> None:
    for training in _on_streams(active):
        training.start_epoch()
    for index in range(max(training.steps for training in active)):
        for training in _on_streams(active):
            if index < training.steps:
                training.step(index)
    for training in _on_streams(active):
        training.wait(len(active))
    for training in _on_streams(active):
        training.end_epoch()


def _on_streams(trainings: Sequence[Training]) -> Iterator[Training]:
    """Yield each training while its stream is the current one."""
    for training in trainings:
        with training.trainer.on_stream():
            yield training


def _load(options: argparse.Namespace, split: str) -> tuple[Tensor, Tensor]:
    images, labels = cifar.load(options.data, split, options.subset_classes)
    images = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return images.to(options.device), torch.from_numpy(labels).long().to(options.device)
