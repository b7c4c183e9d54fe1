"""Training loops that can resume in the middle of an epoch or just before a validation.

A resumed run calls the same hooks on the same batches as an uninterrupted one, with one exception:
`before_train_epoch` is called again for the epoch in which the run resumes.
"""

from mmengine.runner import EpochBasedTrainLoop as UpstreamEpochLoop
from mmengine.runner import IterBasedTrainLoop as UpstreamIterLoop

from mmsb.registry import LOOPS

from . import rng
from .exact_data import NO_BATCH, EndlessBatches, ExactDataLoader


class ResumableMixin:
    """What both loops share: the position of the run, and whether a validation is due.

    `epoch` and `batch` of `place()` count the data: completed passes, and completed batches of the current pass.
    """

    dataloader: ExactDataLoader
    _validated_at = -1  # iteration
    _rng_state: dict | None = None  # to restore
    _rng_before_validation: dict | None = None
    _redo_validation = False

    def place(self, iteration: int) -> dict:
        """Return the position for a checkpoint at an iteration: that in the data, and whether validation is done."""
        return dict(
            epoch=self._data_epoch(),
            batch=self._data_batch(),
            length=len(self.dataloader),
            validated=self._validated_at == iteration,
        )

    def resume(self, place: dict | None, rng_state: dict | None) -> None:
        """Resume at a position, or where upstream's loop would if it is None; call it after restoring the counters."""
        self._rng_state = rng_state
        if place is None or place['validated']:
            self._validated_at = self._iter
        self._go_to(place or self._guess_place())

    def redo_validation(self) -> None:
        """Repeat the current validation from its start after a resume."""
        self._validated_at = -1
        self._redo_validation = True

    def rng_state(self) -> dict:
        """Return the generator states that a checkpoint should hold."""
        return self._rng_before_validation if self._redo_validation else rng.get_state()

    def validate_if_due(self) -> None:
        """Validate when the upstream loop would, unless it was done before the interruption."""
        self._decide_current_val_interval()
        done, last = self._progress()
        if (
            self.runner.val_loop is not None
            and done >= max(self.val_begin, 1)
            and (done % self.val_interval == 0 or done == last)
            and self._validated_at != self._iter
        ):
            self._validated_at = self._iter
            self._rng_before_validation = rng.get_state()
            self.runner.val_loop.run()

    def _restore_rng(self) -> None:
        if self._rng_state is not None:
            rng.set_state(self._rng_state)
            self._rng_state = None


@LOOPS.register_module()
class EpochBasedTrainLoop(ResumableMixin, UpstreamEpochLoop):
    """MMEngine's epoch-based loop, resumable at any point."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._done = 0  # completed batches of this epoch

    def run(self):
        self.runner.call_hook('before_train')
        resumed = self._iter > 0 or self._epoch > 0
        if not self._done:
            self._restore_rng()
            if resumed:
                self.validate_if_due()
        while self._epoch < self._max_epochs and not self.stop_training:
            self.run_epoch()
            self.validate_if_due()
        self.runner.call_hook('after_train')
        return self.runner.model

    def run_epoch(self) -> None:
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        self.dataloader.go_to(self._epoch, self._done)
        self._restore_rng()
        for idx, data_batch in enumerate(self.dataloader, self._done):
            self._done = idx + 1
            self.run_iter(idx, data_batch)
        if not self._done:
            raise ValueError(NO_BATCH)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1
        self._done = 0

    def _progress(self) -> tuple[int, int]:
        return self._epoch, self._max_epochs

    def _data_epoch(self) -> int:
        return self._epoch

    def _data_batch(self) -> int:
        return self._done

    def _go_to(self, place: dict) -> None:
        # a checkpoint written at the end of an epoch counts that epoch as complete, before the loop itself does
        self._done = place['batch'] if place['epoch'] == self._epoch else 0

    def _guess_place(self) -> dict:
        return dict(epoch=self._epoch, batch=0)


@LOOPS.register_module()
class IterBasedTrainLoop(ResumableMixin, UpstreamIterLoop):
    """MMEngine's iteration-based loop, resumable at any point."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.dataloader_iterator = EndlessBatches(self.dataloader)

    def run(self):
        self.runner.call_hook('before_train')
        self.runner.call_hook('before_train_epoch')
        self._restore_rng()
        if self._iter > 0:
            self.validate_if_due()
        while self._iter < self._max_iters and not self.stop_training:
            self.runner.model.train()
            self.run_iter(next(self.dataloader_iterator))
            self.validate_if_due()
        self.runner.call_hook('after_train_epoch')
        self.runner.call_hook('after_train')
        return self.runner.model

    def _progress(self) -> tuple[int, int]:
        return self._iter, self._max_iters

    def _data_epoch(self) -> int:
        return self.dataloader_iterator.epoch

    def _data_batch(self) -> int:
        return self.dataloader_iterator.batch

    def _go_to(self, place: dict) -> None:
        self.dataloader_iterator.go_to(place['epoch'], place['batch'])

    def _guess_place(self) -> dict:
        if 'Infinite' in type(self.dataloader.sampler).__name__:
            return dict(epoch=0, batch=self._iter)
        return dict(zip(('epoch', 'batch'), divmod(self._iter, len(self.dataloader)), strict=True))
