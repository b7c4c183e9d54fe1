"""The progress display: a bar on a terminal, nothing elsewhere."""

import io
from types import SimpleNamespace

import pytest

from mmsb.engine import ProgressHook


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ('stream', 'rank', 'shown'), [(_Terminal, 0, True), (_Terminal, 1, False), (io.StringIO, 0, False)]
)
def test_bar_is_for_the_first_process_on_a_terminal(stream, rank, shown, monkeypatch):
    out = stream()
    monkeypatch.setattr('sys.stderr', out)
    monkeypatch.setenv('TERM', 'xterm')
    runner = SimpleNamespace(rank=rank, iter=4, max_iters=10)
    hook = ProgressHook()
    hook.before_run(runner)
    hook.after_train_iter(runner, 4, outputs=dict(loss=0.5))
    hook.after_run(runner)
    assert ('5/10' in out.getvalue()) == shown
    assert ('loss 0.500' in out.getvalue()) == shown
