"""Measure the speed and memory of networks, interleaved.

Each round times every network once, A B C A B C, so a temporary slowdown of the machine affects all of them. The ratio
to the plain network is computed within each round; the median is then taken over the rounds.
"""

import gc
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field

import numpy as np
import torch

from mmsb.analysis.memory import peak_on_cpu, peak_on_gpu
from mmsb.analysis.networks import Network, Source
from mmsb.analysis.steps import Setting, Step
from mmsb.options import one_line

_REASON_LENGTH = 200  # characters


@dataclass
class Cell:
    """Measurements of one network in one setting.

    Attributes:
        network: name of the network.
        setting: conditions of the measurement.
        seconds: seconds per call, one value per round.
        peak_bytes: peak memory; None if not measured.
        reason: why there are no figures; None if there are.
    """

    network: str
    setting: Setting
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int | None = None
    reason: str | None = None

    def fail(self, error: Exception) -> None:
        """Discard the figures and record the reason."""
        self.reason, self.seconds, self.peak_bytes = reason_of(error), [], None


def reason_of(error: Exception) -> str:
    """Describe in one line why a call failed."""
    text = one_line(error)
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or "can't allocate memory" in text:
        return 'out of memory'
    return text[:_REASON_LENGTH]


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Compute the lower quartile, median and upper quartile with linear interpolation."""
    return tuple(float(value) for value in np.percentile(values, [25, 50, 75]))


def summarise(cell: Cell, plain: Cell | None = None) -> dict:
    """Summarise a cell.

    Args:
        cell: cell of any network.
        plain: cell of the plain network in the same setting.

    Returns:
        The setting; `ms` per call, `images_per_s` and `time_ratio` to the plain network (1.1 is 10 % more time), each a
        median over the rounds with its `_quartiles`; `peak_mib`; `samples_ms`. A missing figure is None.
    """
    figures = {}

    def put(name: str, values: Sequence[float]) -> None:
        low, middle, high = quartiles(values) if values else (None,) * 3
        figures[name] = middle
        figures[f'{name}_quartiles'] = [low, high] if values else None

    put('ms', [seconds * 1e3 for seconds in cell.seconds])
    put('images_per_s', [cell.setting.batch_size / seconds for seconds in cell.seconds])
    both = zip(cell.seconds, plain.seconds if plain else (), strict=False)
    put('time_ratio', [ours / theirs for ours, theirs in both])
    return dict(
        network=cell.network,
        **asdict(cell.setting),
        **figures,
        peak_mib=None if cell.peak_bytes is None else round(cell.peak_bytes / 2**20, 1),
        samples_ms=[seconds * 1e3 for seconds in cell.seconds],
        reason=cell.reason,
    )


def summarise_all(cells: Sequence[Cell], plain: str) -> list[dict]:
    """Summarise cells, each relative to the cell of the network named `plain`."""
    references = {cell.setting: cell for cell in cells if cell.network == plain}
    return [summarise(cell, references.get(cell.setting)) for cell in cells]


def sample(call: Callable[[], None], calls: int, wait: Callable[[], None], clock: Callable[[], float]) -> float:
    """Time several calls in sequence; return the seconds per call.

    Several short calls follow one untimed call, because another network has just used the caches.
    """
    if calls > 1:
        call()
    wait()
    start = clock()
    for _ in range(calls):
        call()
    wait()
    return (clock() - start) / calls


def interleave(
    samples: Mapping[str, Callable[[], float]], rounds: int, failed: Callable[[str, Exception], None]
) -> Iterator[dict[str, float]]:
    """Interleave samples: A B C A B C.

    Args:
        samples: functions by network name that take one sample and return its seconds.
        rounds: number of samples of each network.
        failed: called with a network whose sample raises, and the error; later rounds skip the network.

    Yields:
        The seconds by network name after each round.
    """
    left = dict(samples)
    for _ in range(rounds):
        seconds = {}
        for name, take in list(left.items()):
            try:
                seconds[name] = take()
            except Exception as error:  # whatever it is becomes the reason of an empty cell
                del left[name]
                failed(name, error)
        yield seconds


@dataclass(frozen=True)
class Plan:
    """The amount of measurement.

    Attributes:
        rounds: samples of each network.
        warmup: calls before the samples, at least 1.
        sample_s: minimum seconds of a sample; short calls are repeated to fill it.
        memory: also measure peak memory on the CPU, in one process per cell.
        seed: seed of weights and images.
    """

    rounds: int = 10
    warmup: int = 2
    sample_s: float = 0.5
    memory: bool = False
    seed: int = 0


def measure(
    sources: Sequence[Source],
    settings: Sequence[Setting],
    plan: Plan,
    device: torch.device,
    show: Callable[[str, int, int], None] = lambda *_: None,
) -> Iterator[list[Cell]]:
    """Measure networks, one setting at a time. All of them are on the device together.

    Args:
        sources: configs of the networks.
        settings: conditions of the measurements.
        plan: amount of measurement.
        device: device to measure on.
        show: called with (what, done, total) to report progress.

    Yields:
        All cells so far, after each round.
    """
    networks = {}
    for source in sources:
        networks[source] = Network(source, device, plan.seed)
        show('networks built', len(networks), len(sources))
    cells: list[Cell] = []
    per_setting = len(networks) * (plan.rounds + 1)  # the preparation counts as one sample
    for index, setting in enumerate(settings):
        here = [Cell(source.name, setting) for source in sources]
        cells += here
        taken = itertools.count(index * per_setting + 1)

        def count(taken=taken) -> None:
            show('samples', next(taken), len(settings) * per_setting)

        for _ in _measure_setting(networks, here, plan, device, count):
            yield cells
        if setting.mode.endswith('compile'):
            torch._dynamo.reset()
        _collect(device)
        # include the samples of networks that failed
        show('samples', (index + 1) * per_setting, len(settings) * per_setting)


def _measure_setting(
    networks: Mapping[Source, Network],
    cells: Sequence[Cell],
    plan: Plan,
    device: torch.device,
    count: Callable[[], None],
) -> Iterator[None]:
    """Fill the cells of one setting, one per network; yield after each round."""

    def wait() -> None:
        if device.type == 'cuda':
            torch.cuda.synchronize(device)

    by_name = {cell.network: cell for cell in cells}
    images, samples = None, {}
    with ExitStack() as steps:
        for cell, (source, network) in zip(cells, networks.items(), strict=True):
            try:
                images = cell.setting.images(device, plan.seed) if images is None else images
                step = steps.enter_context(closing(Step(network, cell.setting, images)))
                calls = _prepare(step, source, cell, plan, wait)
                samples[cell.network] = _taking(step, calls, wait, count)
            except Exception as error:  # whatever it is becomes the reason of an empty cell
                cell.fail(error)
            count()
            _collect(device)
        yield
        for seconds in interleave(samples, plan.rounds, lambda name, error: by_name[name].fail(error)):
            for name, value in seconds.items():
                by_name[name].seconds.append(value)
            yield


def _prepare(step: Step, source: Source, cell: Cell, plan: Plan, wait: Callable[[], None]) -> int:
    """Measure memory and warm up; return the number of calls in a sample."""
    if plan.memory and not step.images.is_cuda:
        cell.peak_bytes = peak_on_cpu(source, cell.setting, plan.seed)
    for _ in range(plan.warmup):
        seconds = sample(step, 1, wait, time.perf_counter)
    if step.images.is_cuda:
        cell.peak_bytes = peak_on_gpu(step)
    return max(1, math.ceil(plan.sample_s / seconds))


def _taking(step: Step, calls: int, wait: Callable[[], None], taken: Callable[[], None]) -> Callable[[], float]:
    def take() -> float:
        seconds = sample(step, calls, wait, time.perf_counter)
        taken()
        return seconds

    return take


def _collect(device: torch.device) -> None:
    gc.collect()
    if device.type == 'cuda':
        torch.cuda.empty_cache()
