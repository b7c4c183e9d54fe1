"""Training loops that can resume in the middle of an epoch or just before a validation.

A resumed run calls the same hooks on the same batches as an uninterrupted one, with one exception:
`before_train_epoch` is called again for the epoch in which the run resumes.
"""

from mmengine.runner import BaseLoop
from mmengine.runner import EpochBasedTrainLoop as UpstreamEpochLoop
from mmengine.runner import IterBasedTrainLoop as UpstreamIterLoop

from mmsb.registry import LOOPS

from . import rng
from .exact_data import NO_BATCH, EndlessBatches, RepeatedBatches, exact_batches, length_of


class ResumableMixin:
    """What both loops share: the position of the run, and whether a validation is due."""

    validating = False  # whether the validation that is due is running
    _validated_at = -1  # iteration
    _rng_state: dict | None = None  # to restore
    _rng_before_validation: dict | None = None
    _placed = False  # whether the place in the data is known

    def __init__(self, runner, dataloader, *args, **kwargs) -> None:
        BaseLoop.__init__(self, runner, dataloader)  # builds the loader, which upstream's loop may start to read
        self._batches = exact_batches(self.dataloader, runner.seed)
        super().__init__(runner, self.dataloader, *args, **kwargs)
        self._batches.go_to(0, 0)
        if isinstance(self._batches, RepeatedBatches):
            runner.logger.warning(
                f'train_dataloader ({_describe(self.dataloader)}) can only be read from its start: a resumed run reads '
                'the batches of its epoch again and drops them; it is exact if they are the same ones'
            )

    def snapshot(self, *, stepped: bool = False, redo_validation: bool = False) -> tuple[dict, dict]:
        """Return what a checkpoint holds of the loop: the position, and the states of the random generators.

        `epoch` and `batch` of the position count the data: completed passes, and completed batches of the current one.

        Args:
            stepped: whether the current iteration is done, though not counted yet.
            redo_validation: whether a resumed run repeats the validation that is running.
        """
        epoch, batch = self._data_place(stepped)
        validated = self._validated_at == self._iter + stepped and not redo_validation
        place = dict(epoch=epoch, batch=batch, length=length_of(self.dataloader), validated=validated)
        return place, self._rng_before_validation if redo_validation else rng.get_state()

    def counters(self, *, stepped: bool, epoch_ended: bool) -> dict:
        """Return the completed epochs and iterations, including those that are not counted yet."""
        return dict(epoch=self._epoch + epoch_ended, iter=self._iter + stepped)

    def batch_in_work(self) -> tuple[int, int]:
        """Return the pass over the data, and the index of the batch in it, of the current iteration."""
        epoch, batch = self._data_place(True)
        return epoch, batch - 1

    def resume(self, place: dict | None, rng_state: dict | None) -> None:
        """Resume at a position, or where upstream's loop would if it is None; call it after restoring the counters."""
        self._placed = True
        self._rng_state = rng_state
        if place is None or place['validated']:
            self._validated_at = self._iter
        self._go_to(place or self._guess_place())

    def run(self):
        if self._iter > 0 and not self._placed:  # resumed from a checkpoint, or by a runner, without a position
            self.resume(None, None)
        self._placed = True
        self.runner.call_hook('before_train')
        self._run()
        self.runner.call_hook('after_train')
        return self.runner.model

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
            self.validating = True
            self.runner.val_loop.run()
            self.validating = False

    def _restore_rng(self) -> None:
        if self._rng_state is not None:
            rng.set_state(self._rng_state)
            self._rng_state = None


@LOOPS.register_module()
class EpochBasedTrainLoop(ResumableMixin, UpstreamEpochLoop):
    """MMEngine's epoch-based loop, resumable at any point."""

    _done = 0  # completed batches of this epoch

    def _run(self) -> None:
        if not self._done:
            self._restore_rng()
            if self._iter > 0 or self._epoch > 0:
                self.validate_if_due()
        while self._epoch < self._max_epochs and not self.stop_training:
            self.run_epoch()
            self.validate_if_due()

    def run_epoch(self) -> None:
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        self._batches.go_to(self._epoch, self._done)
        self._restore_rng()
        for idx, data_batch in enumerate(self._batches, self._done):
            self.run_iter(idx, data_batch)
            self._done = idx + 1
        if not self._done:
            raise ValueError(NO_BATCH)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1
        self._done = 0

    def _progress(self) -> tuple[int, int]:
        return self._epoch, self._max_epochs

    def _data_place(self, stepped: bool) -> tuple[int, int]:
        return self._epoch, self._done + stepped

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
        self.dataloader_iterator = EndlessBatches(self.dataloader, self._batches)
        self._done = (0, 0)  # completed passes over the data, and batches of the current one

    def counters(self, *, stepped: bool, epoch_ended: bool) -> dict:
        return super().counters(stepped=stepped, epoch_ended=False)  # all iterations are one epoch, never completed

    def _run(self) -> None:
        self.runner.call_hook('before_train_epoch')
        self._restore_rng()
        if self._iter > 0:
            self.validate_if_due()
        while self._iter < self._max_iters and not self.stop_training:
            self.runner.model.train()
            self.run_iter(next(self.dataloader_iterator))
            self._done = self._data_place(True)
            self.validate_if_due()
        self.runner.call_hook('after_train_epoch')

    def _progress(self) -> tuple[int, int]:
        return self._iter, self._max_iters

    def _data_place(self, stepped: bool) -> tuple[int, int]:
        return (self.dataloader_iterator.epoch, self.dataloader_iterator.batch) if stepped else self._done

    def _go_to(self, place: dict) -> None:
        self._done = (place['epoch'], place['batch'])
        self.dataloader_iterator.go_to(*self._done)

    def _guess_place(self) -> dict:
        length = length_of(self.dataloader)
        if not length or 'Infinite' in type(getattr(self.dataloader, 'sampler', None)).__name__:
            return dict(epoch=0, batch=self._iter)
        return dict(zip(('epoch', 'batch'), divmod(self._iter, length), strict=True))


def _describe(loader) -> str:
    """Name what is uncommon in a dataloader."""
    dataset = getattr(loader, 'dataset', None)
    return type(loader).__name__ if dataset is None else f'{type(loader).__name__} of {type(dataset).__name__}'
