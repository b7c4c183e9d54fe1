"""Peak memory of a call: what is already held (weights, buffers, momentum, images) plus its peak allocation.

On a GPU, PyTorch's allocator reports it. On the CPU, the call runs in its own process, and Linux reports the resident
memory: the peak during the call minus the resident memory before it.
"""

import gc
import json
import os
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from mmsb.analysis.networks import Network, Source
from mmsb.analysis.steps import Setting, Step
from mmsb.options import one_line

_STATUS = Path('/proc/self/status')
_CLEAR = Path('/proc/self/clear_refs')
_SHARE_OF_FREE = 0.9


def peak_on_gpu(step: Step) -> int:
    """Measure the peak memory (bytes) of a call on a GPU, excluding the memory of other networks on it."""
    device = step.images.device
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    return step.held_bytes() + torch.cuda.max_memory_allocated(device) - before


def peak_on_cpu(source: Source, setting: Setting, seed: int) -> int:
    """Measure the peak memory (bytes) of a call on the CPU in a new process.

    Raises:
        RuntimeError: if the process fails; the message gives the reason.
    """
    task = json.dumps(dict(source=asdict(source), setting=asdict(setting), seed=seed))
    # make glibc return large blocks at once, so that resident memory equals memory in use
    environment = {**os.environ, 'MALLOC_MMAP_THRESHOLD_': '65536', 'MALLOC_TRIM_THRESHOLD_': '65536'}
    command = [sys.executable, '-m', 'mmsb.analysis.memory', task]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode < 0:
        raise RuntimeError(f'out of memory: the process was killed by signal {-done.returncode}')
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ['the process failed'])[-1])
    return int(done.stdout.splitlines()[-1])


def limit_to_free_memory() -> None:
    """Make allocations beyond the free memory fail, so that Linux does not kill a process. Elsewhere no limit."""
    try:
        import resource

        free = int(re.search(r'MemAvailable:\s+(\d+) kB', Path('/proc/meminfo').read_text())[1]) * 1024
        data = _status_bytes('VmData')
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        limit = data + int(free * _SHARE_OF_FREE)
        resource.setrlimit(resource.RLIMIT_DATA, (limit if hard < 0 else min(limit, hard), hard))
    except (ImportError, OSError):
        return


def _status_bytes(key: str) -> int:
    return int(re.search(rf'^{key}:\s+(\d+) kB', _STATUS.read_text(), re.MULTILINE)[1]) * 1024


def _peak_here(step: Step) -> int:
    step()  # allocates the momentum, and buffers that the libraries keep
    gc.collect()
    before = _status_bytes('VmRSS')
    _CLEAR.write_text('5')  # reset the peak
    step()
    return step.held_bytes() + _status_bytes('VmHWM') - before


def main() -> None:
    task = json.loads(sys.argv[1])
    limit_to_free_memory()  # the waiting parent process holds some of it
    task['setting']['size_px'] = tuple(task['setting']['size_px'])
    setting, device = Setting(**task['setting']), torch.device('cpu')
    network = Network(Source(**task['source']), device, task['seed'])
    print(_peak_here(Step(network, setting, setting.images(device, task['seed']))))


if __name__ == '__main__':
    import logging

    logging.disable(logging.INFO)
    try:
        main()
    except Exception as error:  # report it in one line to the parent process
        sys.exit(one_line(error))
