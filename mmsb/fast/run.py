"""One training with its log, its checkpoint and its record; an interrupted one goes on.

Of a run NAME = <row>_seed<N> the work dir has NAME.log, NAME.json (the record) and NAME.pth (the momentum, what
identifies the run, and the weights as mmengine keeps them: tools/test.py reads it). What is random in an epoch depends
on seed and epoch alone, so no state of a generator is kept.
"""

import json
import math
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from mmengine.runner import set_random_seed
from torch import Tensor

from mmsb.analysis import zoo
from mmsb.analysis.machine import cpu_name
from mmsb.analysis.report import write_json
from mmsb.checkpoints.load import load_checkpoint
from mmsb.configs import build_model
from mmsb.datasets import cifar
from mmsb.fast.augment import augmented_epoch, draw
from mmsb.fast.plan import Row
from mmsb.fast.recipe import read_recipe
from mmsb.fast.trainer import Trainer
from mmsb.files import write_whole


@dataclass(frozen=True)
class Options:
    """How to run.

    Args:
        data: folder of train.npz and test.npz.
        work_dir: folder of all outputs.
        device: 'cuda' or 'cpu'.
        mode: of the Trainer.
        precision: of the Trainer.
        channels_last: of the Trainer.
        epochs: of a shorter schedule; None: the config's.
        first_classes: train and test on so many classes; None: all.
        eval_every: epochs between two tests; the last epoch is always tested.
        save_every: epochs between two checkpoints.
        jobs: processes.
        streams: runs side by side in a process.
        budget_s: seconds after which no epoch is begun that would not end in time; None: no limit.
        resume: go on from the checkpoints in the work dir.
    """

    data: str
    work_dir: str
    device: str
    mode: str
    precision: str
    channels_last: bool = True
    epochs: int | None = None
    first_classes: int | None = None
    eval_every: int = 10
    save_every: int = 10
    jobs: int = 1
    streams: int = 1
    budget_s: float | None = None
    resume: bool = True


@dataclass(frozen=True)
class Split:
    """Images (n, 3, H, W) uint8 and labels (n,) on the device."""

    images: Tensor
    labels: Tensor

    @classmethod
    def load(cls, options: Options, name: str) -> 'Split':
        images, labels = cifar.load(options.data, name, options.first_classes)
        images = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
        return cls(images.to(options.device), torch.from_numpy(labels).long().to(options.device))


def machine(device: str) -> str:
    """Name what the training runs on."""
    if device.startswith('cuda'):
        return torch.cuda.get_device_name(device)
    return f'{cpu_name()}, {torch.get_num_threads()} thread(s)'


class Run:
    """One network and seed in training; goes on from its checkpoint, if there is one.

    Raises:
        ValueError: if the checkpoint is of another run.
    """

    def __init__(self, row: Row, seed: int, options: Options, train: Split, test: Split):
        self.row, self.seed, self.options, self.train, self.test = row, seed, options, train, test
        self.began = self.train_s = self.loss = 0.0  # of the epoch in hand
        cfg = zoo.load(row.config, row.backbone_options)
        self.recipe = read_recipe(cfg, options.epochs)
        self.as_paper = options.first_classes is None and self.recipe.epochs == cfg.train_cfg.max_epochs
        set_random_seed(seed)
        model = build_model(cfg)
        model.init_weights()
        how = dict(mode=options.mode, precision=options.precision, channels_last=options.channels_last)
        self.trainer = Trainer(model.to(options.device), cfg, self.recipe, **how)
        self.name = f'{row.name}_seed{seed}'
        self.path = Path(options.work_dir) / f'{self.name}.pth'
        self.identity = json.loads(  # tuples become lists, as in a file
            json.dumps(
                dict(
                    row=row.name,
                    config=row.config,
                    backbone_options=row.backbone_options,
                    seed=seed,
                    images=len(train.images),
                    precision=options.precision,
                    recipe=asdict(self.recipe),
                )
            )
        )
        self.history: list[dict] = []
        self.failure = ''
        if options.resume and self.path.is_file():
            with self.on_stream():
                self._resume()
        self.steps = self.recipe.steps(len(train.images))

    @property
    def epoch(self) -> int:
        return len(self.history)

    @property
    def done(self) -> bool:
        return self.epoch >= self.recipe.epochs or bool(self.failure)

    def _resume(self) -> None:
        checkpoint = load_checkpoint(self.path)
        found = checkpoint['meta'].get('run')
        if found != self.identity:
            differs = [key for key in self.identity if (found or {}).get(key) != self.identity[key]]
            raise ValueError(f'{str(self.path)!r} is of a run with another {differs[0]}: name another work dir')
        self.trainer.load(checkpoint['state_dict'], checkpoint['momentum'])
        self.history = checkpoint['meta']['history']

    def on_stream(self):
        """Work on the stream of this run."""
        return nullcontext() if self.trainer.stream is None else torch.cuda.stream(self.trainer.stream)

    def begin_epoch(self) -> None:
        self.began = time.perf_counter()
        with self.on_stream():
            drawn = draw(len(self.train.images), self.recipe, seed=self.seed, epoch=self.epoch)
            self.images, self.labels = augmented_epoch(self.train.images, self.train.labels, drawn, self.recipe)
            self.trainer.set_lr(self.recipe.lr_of(self.epoch))
            self.trainer.loss_sum.zero_()

    def step(self, index: int) -> None:
        batch = slice(index * self.recipe.batch_size, (index + 1) * self.recipe.batch_size)
        with self.on_stream():
            self.trainer.step(self.images[batch], self.labels[batch])

    def wait(self) -> None:
        """Wait for the steps of the epoch."""
        with self.on_stream():
            trained = min(self.steps * self.recipe.batch_size, len(self.images))
            self.loss = self.trainer.loss_sum.item() / trained
            self.train_s = time.perf_counter() - self.began

    def end_epoch(self, side_by_side: int) -> None:
        """Test if it is time to, and write down all that happened."""
        entry = dict(epoch=self.epoch + 1, lr=self.recipe.lr_of(self.epoch), loss=self.loss)
        entry.update(train_s=round(self.train_s, 3), side_by_side=side_by_side)
        self.history.append(entry)
        with self.on_stream():
            if self.epoch % self.options.eval_every == 0 or self.epoch == self.recipe.epochs:
                errors = self.trainer.evaluate(self.test.images, self.test.labels)
                entry.update({f'top{k}_err': round(error, 4) for k, error in errors.items()})
        if not math.isfinite(self.loss):
            self.failure = f'the loss is {self.loss} after epoch {self.epoch}'
        elif self.epoch % self.options.save_every == 0 or self.done:
            self.save()
        self._record(entry)

    def save(self) -> None:
        """Write the checkpoint, on the CPU and in the plain memory format."""
        if self.failure:
            return

        def plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

        meta = dict(run=self.identity, history=self.history, epoch=self.epoch)
        with self.on_stream():
            weights, momentum = plain(self.trainer.model.state_dict()), plain(self.trainer.momentum())
        checkpoint = dict(meta=meta, state_dict=weights, momentum=momentum)
        write_whole(self.path, lambda unfinished: torch.save(checkpoint, unfinished))

    def _record(self, entry: dict) -> None:
        record = dict(
            **{**asdict(self.row), **self.identity},
            epochs_done=self.epoch,
            failure=self.failure,
            first_classes=self.options.first_classes,
            as_paper=self.as_paper,
            mode=self.options.mode,
            jobs=self.options.jobs,
            machine=machine(self.options.device),
            torch=torch.__version__,
            history=self.history,
        )
        write_json(self.path.with_suffix('.json'), record)
        failed = [f'FAILED {self.failure}'] if self.failure else []
        line = ' '.join([*(f'{key} {value:.4g}' for key, value in entry.items()), *failed])
        with self.path.with_suffix('.log').open('a') as log:
            log.write(f'{time.strftime("%F %T")} {line}\n')
        print(f'{self.name}: {line}', flush=True)
