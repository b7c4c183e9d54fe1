"""The options that make a training fast: they train the same network, are recorded, and resume to the same bits."""

import argparse
import ctypes
import json
import signal
import subprocess
import sys

import pytest
import torch
import torch._inductor.config
from chaos.inject import at_iteration, die
from chaos.victim import ROOT, differing, train, weights_of, write_config
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from scenes import FOUR_SCENES
from torch import nn
from torch._dynamo.testing import CompileCounter

from mmsb.engine import fast, speed
from mmsb.models import SBResNet, SBResNetCifar

KINDS = {'plain': {}, 'ema': dict(ema=True), 'accumulation': dict(accumulate=4)}
FAST = ('--amp', 'bf16', '--fast')  # bf16 whatever this CPU is good at


def config(arena, kind: str = 'plain', **options):
    options = dict(by_epoch=False, steps=12, interval=5, save_best=False) | KINDS[kind] | options
    return write_config(arena / 'config.py', **options)


def run(arena, name: str, *args, cfg=None, **options):
    done = train(arena, cfg or config(arena), '--work-dir', name, *args, **options)
    assert done.code == 0, done.said()
    return done


def losses(arena, name: str) -> torch.Tensor:
    lines = next(arena.glob(f'{name}/*/vis_data/scalars.json')).read_text().splitlines()
    return torch.tensor([json.loads(line)['loss'] for line in lines if 'loss' in line])


EVERY = ('--cfg-options', 'default_hooks.logger.interval=1', 'log_processor.window_size=1')


@pytest.fixture(scope='module')
def curves(demo_data, tmp_path_factory):
    """Losses of trainings without options, for three seeds; the folder holds the first one."""
    folder = tmp_path_factory.mktemp('curves')
    (folder / 'data').symlink_to(demo_data / 'data')
    for seed in range(3):
        run(folder, f'seed{seed}', '--seed', seed, *EVERY)
    return folder, torch.stack([losses(folder, f'seed{seed}') for seed in range(3)])


@pytest.mark.parametrize(
    ('flags', 'exact'),
    [
        (['--channels-last'], True),
        (['--cfg-options', 'optim_wrapper.optimizer.fused=True'], True),
        (['--channels-last', '--cfg-options', 'optim_wrapper.optimizer.fused=True'], True),
        (['--amp', 'bf16'], False),
        (FAST, False),
    ],
    ids=['channels_last', 'fused', 'channels_last and fused', 'bf16', 'fast'],
)
def test_losses_are_those_without_the_option(curves, flags, exact):
    folder, plain = curves
    args = [*flags, *EVERY[1:]] if '--cfg-options' in flags else [*flags, *EVERY]
    run(folder, name := f'with{"".join(flags)}', '--seed', 0, *args)
    found = losses(folder, name)
    assert len(found) == 12
    assert not torch.equal(found, plain[0]) or exact
    if exact:
        torch.testing.assert_close(found, plain[0], rtol=1e-3, atol=1e-4)
    else:
        assert (found - plain[0]).abs().max() < (plain.max(0).values - plain.min(0).values).max()


@pytest.mark.parametrize('kind', KINDS)
def test_killed_and_resumed_is_bit_identical(arena, kind):
    cfg = config(arena, kind)
    run(arena, 'whole', *FAST, cfg=cfg)
    killed = train(arena, cfg, '--work-dir', 'run', *FAST, before=lambda: at_iteration(8, die))
    assert killed.code == -signal.SIGKILL, killed.said()
    resumed = run(arena, 'run', *FAST, '--resume', cfg=cfg)
    assert 'resumed epoch: 0, iter: 5' in resumed.said()
    assert differing(weights_of(arena / 'whole/iter_12.pth'), weights_of(arena / 'run/iter_12.pth')) == []


@pytest.mark.parametrize(
    'name', ['faster-rcnn_sb-r50c16_fpn_b16-8e_digits-scenes', 'fpn_sb-resnet20_b8-200i_digits-scenes']
)
def test_detection_and_segmentation_too(arena, name):
    library = 'mmdet' if 'rcnn' in name else 'mmseg'
    pytest.importorskip(f'{library}.apis')
    loop = "type='IterBasedTrainLoop', max_iters=3, val_interval=3"
    (arena / 'config.py').write_text(f"""
_base_ = '{ROOT}/configs/demo/{name}.py'
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(indices=6))
val_dataloader = dict(num_workers=0, persistent_workers=False, batch_size=4, dataset=dict(indices=4))
train_cfg = dict(_delete_=True, {loop})
optim_wrapper = dict(paramwise_cfg=dict(norm_decay_mult=0.0))
default_hooks = dict(checkpoint=dict(_delete_=True, type='CheckpointHook', interval=1, by_epoch=False))
{FOUR_SCENES if library == 'mmdet' else ''}""")
    run(arena, 'whole', *FAST, cfg=arena / 'config.py')
    killed = train(arena, 'config.py', '--work-dir', 'run', *FAST, before=lambda: at_iteration(2, die))
    assert killed.code == -signal.SIGKILL, killed.said()
    resumed = run(arena, 'run', *FAST, '--resume', cfg='config.py')
    assert 'resumed epoch: 0, iter: 2' in resumed.said()
    assert differing(weights_of(arena / 'whole/iter_3.pth'), weights_of(arena / 'run/iter_3.pth')) == []
    wrapper = Config.fromfile(arena / 'run/config.py').optim_wrapper
    assert (wrapper.type, wrapper.constructor) == ('mmsb.Bf16OptimWrapper', 'mmsb.MergedGroups')
    assert len(torch.load(arena / 'run/iter_3.pth', weights_only=True)['optimizer']['param_groups']) <= 2


@pytest.mark.parametrize('stock', [[], ['--stock-hooks']], ids=['safe', 'stock'])
def test_config_records_what_ran_and_checkpoints_are_stock(arena, stock):
    run(arena, 'run', *FAST, *stock, cfg=config(arena, steps=2, interval=2))
    cfg = Config.fromfile(arena / 'run/config.py')
    assert cfg.channels_last is True
    assert cfg.optim_wrapper.optimizer.fused is True
    assert dict(type='mmsb.SpeedHook') in cfg.custom_hooks
    assert 'compile_parts' not in cfg  # does not pay on a CPU
    checkpoint = torch.load(arena / 'run/iter_2.pth', weights_only=False)
    states = [value for state in checkpoint['optimizer']['state'].values() for value in state.values()]
    assert all(value.is_contiguous() for value in [*checkpoint['state_dict'].values(), *states])
    assert any(value.dim() == 4 for value in states)
    assert not any(group['fused'] for group in checkpoint['optimizer']['param_groups'])


@pytest.mark.parametrize('first', [True, False], ids=['fast, then plain', 'plain, then fast'])
def test_a_run_goes_on_with_other_options(arena, curves, first):
    """A fused step reads memory in order: momentum in another format than the weights would go to other weights."""
    options = ('--channels-last', *EVERY, 'optim_wrapper.optimizer.fused=True')
    one, two = (options, EVERY) if first else (EVERY, options)
    train(arena, config(arena), '--work-dir', 'run', '--seed', 0, *one, before=lambda: at_iteration(6, die))
    resumed = run(arena, 'run', '--resume', *two)
    assert 'resumed epoch: 0, iter: 5' in resumed.said()
    expected = weights_of(curves[0] / 'seed0/iter_12.pth')
    found = weights_of(arena / 'run/iter_12.pth')
    apart = {key: (found[key] - value).norm() / value.norm() for key, value in expected.items() if value.dim() == 4}
    assert max(apart.values()) < 0.05  # float error: 0.008; momentum in another format: 1.3


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))


def test_groups_of_equal_settings_are_one():
    network = _Net()
    cfg = dict(
        constructor='mmsb.MergedGroups',
        optimizer=dict(type='SGD', lr=0.1, weight_decay=0.01),
        paramwise_cfg=dict(norm_decay_mult=0.0, bias_lr_mult=2.0, custom_keys={'2.weight': dict(lr_mult=3.0)}),
    )
    groups = build_optim_wrapper(network, cfg).optimizer.param_groups
    settings = {id(weight): (group['lr'], group['weight_decay']) for group in groups for weight in group['params']}
    del cfg['constructor']
    stock = build_optim_wrapper(network, cfg).optimizer.param_groups
    assert len(stock) == 8
    assert settings == {id(group['params'][0]): (group['lr'], group['weight_decay']) for group in stock}
    assert sorted(len(group['params']) for group in groups) == [1, 1, 2, 4]


def test_groups_of_another_kind_are_refused(arena):
    (arena / 'grouped.py').write_text(
        f"_base_ = '{config(arena, steps=3, interval=1)}'\n"
        'optim_wrapper = dict(optimizer=dict(weight_decay=0.01), paramwise_cfg=dict(norm_decay_mult=0.0))\n'
    )
    run(arena, 'run', cfg='grouped.py')
    again = ('--cfg-options', 'train_cfg.max_iters=4')
    refused = train(arena, 'grouped.py', '--work-dir', 'run', *FAST, '--resume', *again)
    assert refused.code == 1
    said = [line for line in refused.said().splitlines() if line.startswith('error: ')]
    assert len(said) == 1
    assert 'optim_wrapper.constructor=DefaultOptimWrapperConstructor' in said[0]
    run(arena, 'run', *FAST, '--resume', *again, 'optim_wrapper.constructor=DefaultOptimWrapperConstructor',
        cfg='grouped.py')  # fmt: skip


@pytest.mark.parametrize(
    ('network', 'dynamic', 'shapes', 'graphs'),
    [
        (lambda: SBResNetCifar(11, base_channels=4), False, [(4, 32, 32), (2, 32, 32), (4, 32, 32)], 2),
        (lambda: SBResNet(50, base_channels=4), True, [(2, h, w) for h, w in
         ((96, 128), (128, 96), (64, 160), (160, 160), (128, 224), (192, 96))], 2),
    ],
    ids=['fixed size', 'many sizes'],
)  # fmt: skip
def test_one_graph_for_all_sizes(monkeypatch, network, dynamic, shapes, graphs):
    torch._dynamo.reset()
    counter, compile = CompileCounter(), torch.compile
    monkeypatch.setattr(torch, 'compile', lambda *args, **options: compile(*args, backend=counter, **options))
    part = network()
    names = list(part.state_dict())
    plain = part.forward
    speed._compile(part, dynamic=dynamic)
    for batch, height, width in shapes:
        images = torch.rand(batch, 3, height, width)
        part.eval()
        before = counter.frame_count
        expected = plain(images)
        torch.testing.assert_close(part(images), expected)
        assert counter.frame_count == before, 'the evaluation is eager'
        part.train()(images)
    assert 1 <= counter.frame_count <= graphs
    assert list(part.state_dict()) == names


class _Branches(nn.Module):
    """Decides by a value, which no single graph can."""

    def forward(self, x):
        return x * 2 if x.sum() > 0 else x


@pytest.mark.parametrize(
    ('part', 'sizes', 'compiled'),
    [(_Branches, [4, 4], 0), (nn.Identity, [4, 5, 6, 7], 2), (nn.Identity, [4, 4], 1)],
    ids=['never one graph', 'more sizes than graphs', 'one graph'],
)
def test_what_cannot_be_one_graph_stays_eager(part, sizes, compiled, monkeypatch):
    torch._dynamo.reset()
    counter, compile, said = CompileCounter(), torch.compile, []
    monkeypatch.setattr(torch, 'compile', lambda *args, **options: compile(*args, backend=counter, **options))
    monkeypatch.setattr(speed, 'print_log', lambda text, *_: said.append(text))
    part = part().train()
    speed._compile(part, dynamic=False, name='backbone')
    with torch._dynamo.config.patch(recompile_limit=2):
        for size in sizes:
            x = torch.rand(size, requires_grad=True)
            torch.testing.assert_close(part(x), type(part)()(x))
    assert counter.frame_count == compiled
    failed = sizes != [4, 4] or isinstance(part, _Branches)
    assert [text.startswith('backbone cannot be compiled as one graph, and stays eager: ') for text in said] == (
        [True] * failed
    )


@pytest.mark.parametrize(
    ('args', 'says'),
    [
        (['--amp', 'fp32'], "--amp must be one of ['auto', 'bf16', 'fp16'], got 'fp32'"),
        (['--amp', 'fp16'], 'AmpOptimWrapper needs a GPU'),
        (['--cfg-options', 'channels_last=yes'], "channels_last must be one of [True, False], got 'yes'"),
        (['--cfg-options', 'compile_parts=[backbon]'], "no option 'backbon' (did you mean 'backbone'?)"),
        (['--compile', '--cfg-options', 'compile=True'], 'exclude each other'),
        (['--compile'], 'compile_parts (--compile) needs a working compiler: '),
    ],
    ids=lambda value: ' '.join(value) if isinstance(value, list) else '',
)
def test_bad_input_is_one_line_and_writes_nothing(arena, args, says):
    def no_compiler() -> None:
        torch._inductor.config.cpp.cxx = (None, '/nowhere')

    done = train(arena, config(arena), '--work-dir', 'run', *args, before=no_compiler)
    assert done.code == 1
    lines = [line for line in done.said().splitlines() if line.startswith('error: ')]
    assert len(lines) == 1
    assert says in lines[0]
    assert not (arena / 'run').exists()


@pytest.mark.parametrize(
    ('device', 'amp', 'wrapper'),
    [
        ('gpu with bf16', 'auto', fast.BF16),
        ('gpu without', 'auto', fast.FP16),
        ('gpu without', 'bf16', fast.BF16),
        ('cpu', 'auto', fast.BF16),
        ('cpu without', None, 'OptimWrapper'),
        ('cpu', None, fast.BF16),
        ('gpu without', None, fast.FP16),
    ],
)
def test_precision_by_device(monkeypatch, device, amp, wrapper):
    monkeypatch.setattr(fast, 'get_device', lambda: 'cuda' if 'gpu' in device else 'cpu')
    monkeypatch.setattr(fast, '_bf16_pays', lambda: 'without' not in device)
    monkeypatch.setattr(fast, '_can_fuse', lambda optimizer: False)
    cfg = Config(dict(
        model=dict(backbone={}, head={}), optim_wrapper=dict(type='AmpOptimWrapper', loss_scale=8.0, optimizer={})
    ))  # fmt: skip
    if wrapper == 'OptimWrapper':
        cfg.optim_wrapper = dict(type=wrapper, optimizer={})
    fast.apply_flags(cfg, argparse.Namespace(amp=amp, fast=amp is None, channels_last=False, compile=False))
    assert cfg.optim_wrapper.type == wrapper
    assert ('loss_scale' in cfg.optim_wrapper) == (wrapper == fast.FP16)
    assert (cfg.get('compile_parts') == ['backbone']) == (amp is None and 'gpu' in device)


@pytest.mark.skipif(
    not (sys.platform == 'linux' and hasattr(ctypes.CDLL(None), 'mallopt')), reason='needs glibc and Linux'
)
@pytest.mark.parametrize('keep', [True, False])
def test_freed_memory_is_kept(keep):
    code = """if True:
        import resource, torch
        from mmsb.engine import fast
        if KEEP:
            fast._keep_freed_memory()
        def resident():
            return int(open('/proc/self/statm').read().split()[1]) * resource.getpagesize()
        block = torch.ones(1 << 24)  # 64 MiB
        used = resident()
        del block
        print((used - resident()) / 2**26)
    """
    code = code.replace('KEEP', str(keep))
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=ROOT)
    returned = float(done.stdout.splitlines()[-1])
    assert (returned < 0.1) if keep else (returned > 0.9)


def test_limits_of_onednn_count(monkeypatch):
    code = 'from mmsb.engine import fast; print(fast._bf16_pays())'
    monkeypatch.setenv('ONEDNN_MAX_CPU_ISA', 'AVX2')  # which has no bf16
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == 'False'
