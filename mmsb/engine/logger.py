"""The log hook, for several processes."""

from mmengine.hooks import LoggerHook as UpstreamLoggerHook

from mmsb.registry import HOOKS


@HOOKS.register_module(name='LoggerHook')
class LoggerHook(UpstreamLoggerHook):
    """MMEngine's hook, but the figures of a test are written by the first process alone.

    Upstream every process opens the same file: when their texts differ in length (each has its own times), the end of
    the longer one can stay behind the shorter one, and the file is no JSON any more.
    """

    def after_test_epoch(self, runner, metrics: dict[str, float] | None = None) -> None:
        if runner.rank == 0:
            super().after_test_epoch(runner, metrics)
