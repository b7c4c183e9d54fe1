"""Describe the machine and software of a measurement, to record them with its results."""

import datetime
import os
import platform
import re
import shlex
import sys
from pathlib import Path

import torch


def find_device(name: str | None = None) -> torch.device:
    """Return the device named on a command line; None selects a GPU if there is one.

    Raises:
        ValueError: if the name is not cpu, cuda or cuda:N, or there is no GPU.
    """
    name = name or ('cuda' if torch.cuda.is_available() else 'cpu')
    if not re.fullmatch(r'cpu|cuda(:\d+)?', name):
        raise ValueError(f'--device must be cpu, cuda or cuda:N, got {name!r}')
    if name != 'cpu' and not torch.cuda.is_available():
        raise ValueError(f'--device {name}: PyTorch finds no GPU here')
    return torch.device(name)


def describe(device: torch.device, seed: int) -> dict:
    """Describe the machine, software, command and date."""
    about = dict(
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'),
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        seed=seed,
        device=device.type,
        cpu=cpu_name(),
        cores=os.cpu_count(),
        threads=torch.get_num_threads(),
        load_average=list(os.getloadavg()) if hasattr(os, 'getloadavg') else None,
        system=f'{platform.system()} {platform.machine()}',
        python=platform.python_version(),
        torch=torch.__version__,
    )
    if device.type == 'cuda':
        properties = torch.cuda.get_device_properties(device)
        about |= dict(
            gpu=properties.name,
            gpu_memory_mib=properties.total_memory // 2**20,
            cuda=torch.version.cuda,
            cudnn=torch.backends.cudnn.version(),
            cudnn_benchmark=torch.backends.cudnn.benchmark,
            tf32_convolutions=torch.backends.cudnn.allow_tf32,
            tf32_matmuls=torch.backends.cuda.matmul.allow_tf32,
        )
    return about


def summary(about: dict) -> str:
    """Summarise in one line what the figures depend on most."""
    if about['device'] == 'cuda':
        tf32 = [kind for kind in ('convolutions', 'matmuls') if about[f'tf32_{kind}']]
        return f'{about["gpu"]}, PyTorch {about["torch"]}, TF32 in fp32: {" and ".join(tf32) or "none"}'
    load = f', load average {about["load_average"][0]:.1f}' if about['load_average'] else ''
    return f'{about["cpu"]}, {about["threads"]} of {about["cores"]} cores{load}, PyTorch {about["torch"]}, no TF32'


def cpu_name() -> str:
    """Return the name of the processor."""
    info = Path('/proc/cpuinfo')
    found = re.search(r'^model name\s*:\s*(.+)$', info.read_text(), re.MULTILINE) if info.is_file() else None
    return found[1] if found else platform.processor() or platform.machine()
