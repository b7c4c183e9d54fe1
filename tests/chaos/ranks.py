"""Faults in one of several processes: the part of `campaign.py` that needs torchrun's agent, which restarts them."""

import itertools
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from chaos.inject import SAVE_AT, InSaves, at_iteration
from chaos.victim import Victim, differing, run_tool, weights_of, write_config

TIMEOUT_S = 8  # of the communication between the processes
PATIENCE_S = 120  # TIMEOUT_S, the agent's 30 s between SIGTERM and SIGKILL, and twice the training on a busy machine
FAULTS = [  # signal, process (None: both at once), in a save; both are not stopped, since nothing would notice
    (signal.SIGKILL, 0, True),
    (signal.SIGSTOP, 1, False),
    (signal.SIGKILL, 1, True),
    (signal.SIGSTOP, 0, True),
    (signal.SIGKILL, None, False),
    (signal.SIGSTOP, 1, True),
    (signal.SIGKILL, 0, False),
    (signal.SIGSTOP, 0, False),
    (signal.SIGKILL, 1, False),
    (signal.SIGKILL, None, True),
]


class Team(Victim):
    """A training in two processes, started by torchrun's agent in a child process.

    Args:
        folder: working directory, with data/demo in it.
        args: arguments of tools/train.py.
        before: called with the rank in each process on its first start.
        max_restarts: how often the agent restarts the processes.
    """

    def __init__(self, folder: Path, *args, before: Callable[[int], None] | None = None, max_restarts: int = 1) -> None:
        self._before, self._max_restarts = before, max_restarts
        super().__init__(folder, *args, '--launcher', 'pytorch')

    def _run(self, folder: Path, args: list[str], before) -> int:
        config = LaunchConfig(
            min_nodes=1, max_nodes=1, nproc_per_node=2, start_method='fork', max_restarts=self._max_restarts,
            rdzv_backend='c10d', rdzv_endpoint='127.0.0.1:0', monitor_interval=0.1, run_id=str(os.getpid()),
        )  # fmt: skip
        os.setpgid(0, 0)
        self._redirect()
        elastic_launch(config, self._process)(folder, args)
        return 0

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to all processes, including stopped ones."""
        if self.poll() is None:
            os.killpg(self.pid, number)

    def _process(self, folder: Path, args: list[str]) -> None:
        def before() -> None:
            if self._before and os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':
                self._before(int(os.environ['RANK']))

        code = run_tool('train.py', folder, args, before)
        if code:
            os._exit(code)


def fault_of(rank: int | None, number: int, place: int, in_save: bool) -> Callable[[int], None]:
    """Make what a team calls before it trains: a process, or each of them (None), gets a signal in a step or a save."""

    def before(mine: int) -> None:
        def act(*_) -> None:
            os.kill(os.getpid(), number)

        if rank is not None and mine != rank:
            return
        if not in_save:
            at_iteration(place, act)
        elif mine == 0:
            InSaves(place, act).install()
        else:  # it writes nothing: the first process saves without it
            at_iteration(SAVE_AT - 1, act, 'after_train_iter')

    return before


def faults_of_ranks(folder: Path, count: int, flags: tuple = ()) -> Iterator[tuple[bool, str]]:
    """Kill or stop one of two processes, or both, in a step or in a save; yield whether both went on, and why not."""
    chance = random.Random(0)
    config = write_config(folder / 'ranks.py', steps=4, interval=2)
    options = ('--cfg-options', f'env_cfg.dist_cfg.timeout={TIMEOUT_S}')
    Team(folder, config, '--work-dir', 'ranks-whole', *options).wait(PATIENCE_S)
    last = 'iter_12.pth'
    whole = weights_of(folder / 'ranks-whole' / last)
    for number, rank, in_save in itertools.islice(itertools.cycle(FAULTS), count):
        place = chance.randrange(6) if in_save else chance.randrange(1, 11)
        work_dir = folder / 'ranks-cut'
        shutil.rmtree(work_dir, ignore_errors=True)
        begun = time.monotonic()
        before = fault_of(rank, number, place, in_save)
        team = Team(folder, config, '--work-dir', work_dir, *flags, *options, before=before)
        who = 'both processes' if rank is None else f'process {rank}'
        name = f'{signal.Signals(number).name} of {who} {"in a save" if in_save else "in a step"}'
        try:
            code = team.wait(PATIENCE_S)
        except TimeoutError:
            yield False, f'still there after {time.monotonic() - begun:.0f} s: {name}'
            continue
        if code:
            yield False, f'ended with {code}: {name}'
        elif (in_save or place >= 2) and 'resumed epoch' not in team.said():  # the first checkpoint is at 2
            yield False, f'began anew: {name}'
        elif not (work_dir / last).exists():
            yield False, f'repeated iterations: {name}'
        else:
            yield not differing(weights_of(work_dir / last), whole), f'other weights: {name}'
