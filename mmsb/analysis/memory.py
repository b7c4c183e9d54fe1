"""Peak memory of a call: what it finds (weights, buffers, momentum, images) and what it allocates at its peak.

On a GPU PyTorch's allocator knows. On the CPU the call is made in a process of its own, whose resident memory Linux
tells: the peak during the call less what was resident before it.
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
    """Measure the peak memory (bytes) of a call on a GPU, without that of other networks there."""
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
        RuntimeError: if the process fails; says why.
    """
    task = json.dumps(dict(source=asdict(source), setting=asdict(setting), seed=seed))
    # glibc gives large blocks back at once, so that resident memory is what is in use
    environment = {**os.environ, 'MALLOC_MMAP_THRESHOLD_': '65536', 'MALLOC_TRIM_THRESHOLD_': '65536'}
    command = [sys.executable, '-m', 'mmsb.analysis.memory', task]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode < 0:
        raise RuntimeError(f'out of memory: the process was ended by signal {-done.returncode}')
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ['the process failed'])[-1])
    return int(done.stdout.splitlines()[-1])


def limit_to_free_memory() -> None:
    """Let an allocation beyond what is free fail, where Linux would end some process for it. No limit elsewhere."""
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
    step()  # allocates the momentum, and what the libraries keep
    gc.collect()
    before = _status_bytes('VmRSS')
    _CLEAR.write_text('5')  # forget the peak
    step()
    return step.held_bytes() + _status_bytes('VmHWM') - before


def main() -> None:
    task = json.loads(sys.argv[1])
    limit_to_free_memory()  # the process that waits holds some of it
    task['setting']['size_px'] = tuple(task['setting']['size_px'])
    setting, device = Setting(**task['setting']), torch.device('cpu')
    network = Network(Source(**task['source']), device, task['seed'])
    print(_peak_here(Step(network, setting, setting.images(device, task['seed']))))


if __name__ == '__main__':
    import logging

    logging.disable(logging.INFO)
    try:
        main()
    except Exception as error:  # told in one line to the process that waits
        sys.exit(one_line(error))
