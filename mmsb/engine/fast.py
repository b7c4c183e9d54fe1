"""What makes a training fast, as keys of its config, and the flags of `tools/train.py` that write these keys.

| flag | keys |
|---|---|
| --amp bf16 | optim_wrapper.type = 'mmsb.Bf16OptimWrapper' |
| --amp fp16 | optim_wrapper.type = 'AmpOptimWrapper', .dtype = 'float16', .loss_scale |
| --channels-last | channels_last = True |
| --compile | compile_parts = ('backbone', 'neck'), compile_dynamic: whether the sizes of the images vary; if so,
  channels_last = True |
| --fast | what of these pays here (`FAST`), and optim_wrapper.optimizer.fused = True,
  optim_wrapper.constructor = 'mmsb.MergedGroups', env_cfg.cudnn_benchmark = True |

On a CPU, `--fast` also keeps freed memory; no key says so, because it changes no result.

`mmsb.SpeedHook` acts on channels_last, compile_parts and compile_dynamic; the launcher adds it.
"""

import argparse
import ctypes
import functools
import inspect
import random
import re
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import OPTIMIZERS

from mmsb.options import check_keys, choose, one_line

from . import safety
from .processes import rank_in_environment, warn

HOOK = 'mmsb.SpeedHook'
KEYS = ('channels_last', 'compile_parts', 'compile_dynamic')  # of the config; read by the hook
BF16, FP16 = 'mmsb.Bf16OptimWrapper', 'AmpOptimWrapper'
WRAPPERS = ('OptimWrapper', FP16, BF16)
MERGED = 'mmsb.MergedGroups'
FAST = {  # what --fast may choose, on each device that MMEngine knows; on others nothing is known to work
    'cpu': ('amp', 'channels_last', 'fused', 'freed memory'),  # a compiled step is no faster there
    'cuda': ('amp', 'channels_last', 'fused', 'compile', 'cudnn_benchmark'),
    **dict.fromkeys(('npu', 'mlu', 'musa'), ('amp',)),  # MMEngine's fp16
    'mps': ('fused',),  # MMEngine has no mixed precision there, and PyTorch's compiler is a prototype
}
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
    """Write the flags into a config; print what `--fast` chooses.

    Raises:
        ValueError: a flag has an unknown value, or the config has a part that it does not support.
    """
    chosen = _choose_fast(cfg, args) if args.fast else []
    if args.amp or 'amp' in chosen:
        _use_amp(cfg, args.amp or 'auto')
    if args.channels_last or 'channels_last' in chosen:
        cfg.channels_last = True
    if args.compile or 'compile' in chosen:
        cfg.compile_parts = [name for name in ('backbone', 'neck') if cfg.model.get(name) is not None]
        cfg.compile_dynamic = cfg.get('default_scope') == 'mmdet'
    if 'fused' in chosen:
        _fuse(cfg)
    if 'cudnn_benchmark' in chosen:
        cfg.env_cfg = {**(cfg.get('env_cfg') or {}), 'cudnn_benchmark': True}
    if 'freed memory' in chosen:
        _keep_freed_memory()
    if args.fast and rank_in_environment() == 0:
        kind = cfg.optim_wrapper.get('type', 'OptimWrapper')
        precision = {'OptimWrapper': 'fp32', BF16: 'bf16', FP16: 'fp16'}.get(kind, kind)
        print(f'--fast on {get_device()}: {", ".join([precision, *(part for part in chosen if part != "amp")])}')


def _choose_fast(cfg: Config, args: argparse.Namespace) -> list[str]:
    """List what `--fast` turns on: what this device, this machine and this config can have."""
    wrapper = cfg.optim_wrapper
    conditions = {
        'amp': lambda: wrapper.get('type', 'OptimWrapper') in WRAPPERS and (get_device() != 'cpu' or _bf16_pays()),
        'fused': lambda: bool(wrapper.get('optimizer')) and _can_fuse(wrapper.optimizer),
        'compile': lambda: not cfg.get('compile') and (args.compile or _has_compiler()),
        'cudnn_benchmark': lambda: _has_one_size(cfg),
    }
    return [part for part in FAST.get(get_device(), ()) if conditions.get(part, lambda: True)()]


def _has_compiler() -> bool:
    failure = _failure_of_compiler()
    if failure:
        warn(f'--fast does not compile, because there is no working compiler: {failure}')
    return not failure


def _has_one_size(cfg: Config) -> bool:
    """Return whether all images of the training have one size: a classifier's, and a segmenter's that are padded to it.

    Where they vary, cuDNN would measure its algorithms again for each size.
    """
    preprocessor = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    scope = cfg.get('default_scope')
    return scope == 'mmpretrain' or (scope == 'mmseg' and preprocessor.get('size') is not None)


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
    if kind not in WRAPPERS:
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
    if get_device() != 'cpu':
        return False  # not known
    info = Path('/proc/cpuinfo')  # on a Mac or Windows PC: not known, so not
    has_bf16 = info.is_file() and any(name in info.read_text() for name in ('avx512_bf16', 'amx_bf16', ' bf16'))
    return has_bf16 and torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _fuse(cfg: Config) -> None:
    """Let the optimizer update all weights at once: one group for each kind of setting."""
    wrapper = cfg.optim_wrapper
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
    if parts and cfg.get('compile_dynamic'):
        cfg.setdefault('channels_last', True)  # the only memory format in which one graph serves all sizes
    if cfg.get('channels_last') or parts or is_fused(cfg):
        safety.add_hook(cfg, HOOK)
    if (cfg.get('env_cfg') or {}).get('cudnn_benchmark') and (cfg.get('randomness') or {}).get('deterministic'):
        cfg.env_cfg.cudnn_benchmark = False  # as MMEngine does when it starts


def is_fused(cfg: Config) -> bool:
    """Return whether the config asks for a fused optimizer."""
    return bool(((cfg.get('optim_wrapper') or {}).get('optimizer') or {}).get('fused'))


def check_device(cfg: Config) -> None:
    """Check that this machine can do what the config asks for; compiles a line of code for that.

    Raises:
        ValueError: it can't.
    """
    kind, device = (cfg.get('optim_wrapper') or {}).get('type'), get_device()
    if kind == FP16 and device == 'cpu':
        raise ValueError('AmpOptimWrapper needs a GPU, and none is visible: on a CPU use --amp bf16')
    if kind in (FP16, BF16) and 'amp' not in FAST.get(device, ()):
        raise ValueError(f'{kind} is mixed precision, which MMEngine lacks on {device}: use OptimWrapper, or no --amp')
    if cfg.get('compile_parts') and (failure := _failure_of_compiler()):
        raise ValueError(f'compile_parts (--compile) needs a working compiler: {failure}')


@functools.cache
def _failure_of_compiler() -> str:
    """Compile a line of code for this device, and return why that fails, or ''."""
    fresh = random.random()  # a constant of the code, so that no cache of compiled code answers
    try:
        torch.compile(lambda x: x.sin() + fresh)(torch.zeros(8, device=get_device()))
    except Exception as error:  # of the compiler, of which PyTorch has many
        return reason_of(error)
    return ''


def reason_of(error: Exception) -> str:
    """Return why a compilation failed, in one line without the advice to those who write compilers."""
    advice = r' (?=Explanation:|Hint:|Set TORCHDYNAMO|from user code:|The above exception)'
    return re.split(advice, one_line(error))[0]
