"""The log hook with several processes."""

from types import SimpleNamespace

from mmsb.engine import LoggerHook


class Processor:
    def get_log_after_epoch(self, runner, length, mode, with_non_scalar):
        return {'accuracy/top1': 50.0, 'time': 0.1 if runner.rank else 0.123456}, ''


def test_only_the_first_process_writes_the_figures_of_a_test(tmp_path):
    written = {}
    for rank in (0, 1):
        hook = LoggerHook()
        hook.json_log_path = f'{rank}.json'
        hook.after_test_epoch(
            SimpleNamespace(
                rank=rank,
                log_dir=str(tmp_path),
                log_processor=Processor(),
                logger=SimpleNamespace(info=print),
                test_dataloader=[0],
            )
        )
        written[rank] = (tmp_path / f'{rank}.json').exists()
    assert written == {0: True, 1: False}
