"""What makes a training fast, as keys of its config, and the flags of `tools/train.py` that write these keys.

| flag | keys |
|---|---|
| --amp bf16 | optim_wrapper.type = 'mmsb.Bf16OptimWrapper' |
| --amp fp16 | optim_wrapper.type = 'AmpOptimWrapper', .dtype = 'float16', .loss_scale |
| --channels-last | channels_last = True |
| --compile | compile_parts = ('backbone', 'neck'), compile_dynamic: whether the sizes of the images vary |
| --fast | all of these that pay on this device, optim_wrapper.optimizer.fused, .constructor = 'mmsb.MergedGroups' |

On a CPU, `--fast` also keeps freed memory; no key says so, because it changes no result.

`mmsb.SpeedHook` acts on channels_last, compile_parts and compile_dynamic; the launcher adds it.
"""

import argparse
import ctypes
import inspect
import random
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import OPTIMIZERS

from mmsb.options import check_keys, choose, one_line

from . import safety

HOOK = 'mmsb.SpeedHook'
KEYS = ('channels_last', 'compile_parts', 'compile_dynamic')  # of the config; read by the hook
BF16, FP16 = 'mmsb.Bf16OptimWrapper', 'AmpOptimWrapper'
MERGED = 'mmsb.MergedGroups'
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h
_ONLY_FP16 = ('dtype', 'loss_scale', 'use_fsdp')  # options of AmpOptimWrapper that bf16 does not need


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags; `apply_flags` writes them into a config."""
    parser.add_argument(
        '--amp',
        nargs='?',
        const='auto',
        metavar='bf16|fp16',
        help='mixed precision (default: bf16, or fp16 on a GPU that has no bf16)',
    )
    parser.add_argument('--channels-last', action='store_true', help='memory format of weights and images')
    parser.add_argument('--compile', action='store_true', help='compile backbone and neck (needs a C++ compiler)')
    parser.add_argument('--fast', action='store_true', help='all of these that pay here, and a fused optimizer')


def apply_flags(cfg: Config, args: argparse.Namespace) -> None:
    """Write the flags into a config.

    Raises:
        ValueError: a flag has an unknown value, or the config has a part that it does not support.
    """
    on_gpu = get_device() != 'cpu'
    if args.amp or (args.fast and _bf16_pays()) or (args.fast and on_gpu):
        _use_amp(cfg, args.amp or 'auto')
    if args.channels_last or args.fast:
        cfg.channels_last = True
    if args.compile or (args.fast and on_gpu):
        cfg.compile_parts = [name for name in ('backbone', 'neck') if cfg.model.get(name) is not None]
        cfg.compile_dynamic = cfg.get('default_scope') == 'mmdet'
    if args.fast:
        _fuse(cfg)
        if not on_gpu:
            _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next step.

    It would return large pieces to the system, which clears each page when the next step touches it.
    """
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)  # glibc's
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)


def _use_amp(cfg: Config, precision: str) -> None:
    choose('--amp', precision, ('auto', 'bf16', 'fp16'))
    wrapper = cfg.optim_wrapper
    kind = wrapper.get('type', 'OptimWrapper')
    if kind not in ('OptimWrapper', FP16, BF16):
        raise ValueError(f'--amp supports OptimWrapper, but optim_wrapper.type of the config is {kind!r}')
    if precision == 'auto':
        precision = 'bf16' if get_device() == 'cpu' or _bf16_pays() else 'fp16'
    if precision == 'bf16':
        wrapper.type = BF16
        for key in _ONLY_FP16:
            wrapper.pop(key, None)
    else:
        wrapper.type, wrapper.dtype = FP16, 'float16'
        wrapper.setdefault('loss_scale', 'dynamic')


def _bf16_pays() -> bool:
    """Return whether this device computes in bf16 rather than emulate it.

    A CPU must have the instructions, and oneDNN may use them: ONEDNN_MAX_CPU_ISA in the environment limits it.
    """
    if get_device() == 'cuda':
        return torch.cuda.get_device_capability() >= (8, 0)
    info = Path('/proc/cpuinfo')  # on a Mac or Windows PC: not known, so not
    has_bf16 = info.is_file() and any(name in info.read_text() for name in ('avx512_bf16', 'amx_bf16', ' bf16'))
    return has_bf16 and torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _fuse(cfg: Config) -> None:
    """Let the optimizer update all weights at once, where it and the device can: one group for each kind of setting."""
    wrapper = cfg.optim_wrapper
    if not wrapper.get('optimizer') or not _can_fuse(wrapper.optimizer):
        return
    wrapper.optimizer.fused = True
    if wrapper.get('paramwise_cfg') and wrapper.get('constructor') in (None, 'DefaultOptimWrapperConstructor'):
        wrapper.constructor = MERGED


def _can_fuse(optimizer: dict) -> bool:
    cls = OPTIMIZERS.get(optimizer['type'])
    if cls is None or 'fused' not in inspect.signature(cls).parameters:
        return False
    weight = torch.nn.Parameter(torch.zeros(1, device=get_device()))
    weight.grad = torch.zeros_like(weight)
    try:
        cls([weight], lr=0.1, fused=True).step()
    except RuntimeError:  # this PyTorch has no fused kernel for this device
        return False
    return True


def add_hook(cfg: Config) -> None:
    """Check the keys, and add the hook where there is something to do for it.

    Raises:
        ValueError: a key has a value that is not valid.
    """
    for key in ('channels_last', 'compile_dynamic'):
        choose(key, cfg.get(key, False), (True, False))
    parts = cfg.get('compile_parts') or []
    check_keys('compile_parts', parts, [name for name, part in cfg.model.items() if isinstance(part, dict)])
    if parts and cfg.get('compile'):
        raise ValueError("compile_parts and MMEngine's compile, which compiles the whole step, exclude each other")
    if cfg.get('channels_last') or parts or is_fused(cfg):
        safety.add_hook(cfg, HOOK)


def is_fused(cfg: Config) -> bool:
    """Return whether the config asks for a fused optimizer."""
    return bool(((cfg.get('optim_wrapper') or {}).get('optimizer') or {}).get('fused'))


def check_device(cfg: Config) -> None:
    """Check that this machine can do what the config asks for; compiles a line of code for that.

    Raises:
        ValueError: it can't.
    """
    wrapper = cfg.get('optim_wrapper') or {}
    if wrapper.get('type') == FP16 and get_device() == 'cpu':
        raise ValueError('AmpOptimWrapper needs a GPU, and none is visible: on a CPU use --amp bf16')
    if cfg.get('compile_parts'):
        fresh = random.random()  # a constant of the code, so that no cache of compiled code answers
        try:
            torch.compile(lambda x: x.sin() + fresh)(torch.zeros(8, device=get_device()))
        except Exception as error:  # of the compiler, of which PyTorch has many
            reason = one_line(error).partition(' Set TORCHDYNAMO')[0]
            raise ValueError(f'compile_parts (--compile) needs a working compiler: {reason}') from error
