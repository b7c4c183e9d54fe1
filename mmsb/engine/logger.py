"""The log hook, safe for distributed tests."""

from mmengine.hooks import LoggerHook as UpstreamLoggerHook

from mmsb.registry import HOOKS


@HOOKS.register_module(name='LoggerHook')
class LoggerHook(UpstreamLoggerHook):
    """MMEngine's hook, except that only the first process writes the metrics of a test.

    Upstream, every process writes the same file. Their texts differ in length, since each has its own timings, so the
    tail of a longer one can remain after a shorter one, and the file is no longer valid JSON.
    """

    def after_test_epoch(self, runner, metrics: dict[str, float] | None = None) -> None:
        if runner.rank == 0:
            super().after_test_epoch(runner, metrics)
