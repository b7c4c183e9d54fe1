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
    monkeypatch.setattr(torch, 'compile', lambda *args, options, **others: compile(*args, backend=counter, **others))
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
    monkeypatch.setattr(torch, 'compile', lambda *args, options, **others: compile(*args, backend=counter, **others))
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


DEVICES = {  # as get_device names them, and whether they compute in bf16
    'cuda': ('cuda', True), 'older cuda': ('cuda', False), 'cpu': ('cpu', True), 'older cpu': ('cpu', False),
    **{name: (name, False) for name in ('npu', 'mlu', 'musa', 'mps', 'dipu', 'one of tomorrow')},
}  # fmt: skip
ON_GPU = ('channels_last', 'fused', 'compile', 'cudnn_benchmark')


@pytest.fixture
def device(monkeypatch):
    """Return a function that makes `fast` see a device, with fused optimizers and a compiler that works or not."""

    def see(name: str, failure: str = '') -> None:
        device, has_bf16 = DEVICES[name]
        monkeypatch.setattr(fast, 'get_device', lambda: device)
        monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda: (8, 0) if has_bf16 else (7, 5))
        if device == 'cpu':
            monkeypatch.setattr(fast, '_bf16_pays', lambda: has_bf16)
        monkeypatch.setattr(fast, '_can_fuse', lambda optimizer: True)
        monkeypatch.setattr(fast, '_failure_of_compiler', lambda: failure)

    return see


def write_flags(flags: str = '--fast', wrapper: dict | None = None, **keys) -> Config:
    """Write flags into a config with some keys, and complete it as the launcher does."""
    parser = argparse.ArgumentParser()
    fast.add_flags(parser)
    model = dict(backbone={}, head={}, data_preprocessor=dict(size=(8, 8)))
    wrapper = {'type': 'OptimWrapper', 'optimizer': dict(type='SGD', lr=0.1), **(wrapper or {})}
    cfg = Config(dict(model=model, optim_wrapper=wrapper, default_scope='mmpretrain') | keys)
    fast.apply_flags(cfg, parser.parse_args(flags.split()))
    fast.add_hook(cfg)
    return cfg


@pytest.mark.parametrize(
    ('name', 'flags', 'expected'),
    [
        ('cuda', '--amp', fast.BF16), ('older cuda', '--amp', fast.FP16), ('older cuda', '--amp bf16', fast.BF16),
        ('cpu', '--amp', fast.BF16), ('older cpu', '--amp', fast.BF16), ('npu', '--amp', fast.FP16),
        ('cpu', '--fast --amp bf16', fast.BF16), ('cuda', '--fast --amp fp16', fast.FP16),
    ],
)  # fmt: skip
def test_precision_that_is_asked_for(device, name, flags, expected):
    device(name)
    cfg = write_flags(flags, dict(type=fast.FP16, loss_scale=8.0))
    assert cfg.optim_wrapper.type == expected
    assert ('loss_scale' in cfg.optim_wrapper) == (expected == fast.FP16)
    fast.check_device(cfg)


@pytest.mark.parametrize(
    ('name', 'precision', 'chosen'),
    [
        ('cuda', 'bf16', ON_GPU),
        ('older cuda', 'fp16', ON_GPU),
        ('cpu', 'bf16', ('channels_last', 'fused', 'freed memory')),
        ('older cpu', 'fp32', ('channels_last', 'fused', 'freed memory')),
        ('npu', 'fp16', ()),
        ('mlu', 'fp16', ()),
        ('musa', 'fp16', ()),
        ('mps', 'fp32', ('fused',)),
        ('dipu', 'fp32', ()),
        ('one of tomorrow', 'fp32', ()),
    ],
)
def test_fast_picks_what_works_on_the_device_and_says_so(device, capsys, monkeypatch, name, precision, chosen):
    device(name)
    kept = []
    monkeypatch.setattr(fast, '_keep_freed_memory', lambda: kept.append(True))
    cfg = write_flags()
    assert capsys.readouterr().out == f'--fast on {DEVICES[name][0]}: {", ".join((precision, *chosen))}\n'
    wrappers = dict(fp32='OptimWrapper', bf16=fast.BF16, fp16=fast.FP16)
    assert cfg.optim_wrapper.type == wrappers[precision]
    found = dict(
        channels_last=cfg.get('channels_last'), fused=cfg.optim_wrapper.optimizer.get('fused'),
        compile=cfg.get('compile_parts'), cudnn_benchmark=(cfg.get('env_cfg') or {}).get('cudnn_benchmark'),
    )  # fmt: skip
    assert {key for key, value in found.items() if value} | ({'freed memory'} if kept else set()) == {*chosen}
    fast.check_device(cfg)


@pytest.mark.parametrize('name', ['mps', 'dipu'])
@pytest.mark.parametrize('flags', ['--amp', '--amp bf16', '--amp fp16'])
def test_mixed_precision_that_mmengine_lacks_is_one_line(device, name, flags):
    device(name)
    with pytest.raises(ValueError, match=f'is mixed precision, which MMEngine lacks on {name}: .* no --amp$'):
        fast.check_device(write_flags(flags))


def test_fast_without_a_compiler_does_not_compile(device, capsys):
    device('cuda', failure='Cannot find a working triton installation')
    cfg = write_flags()
    assert 'compile_parts' not in cfg
    said = capsys.readouterr()
    assert 'compile' not in said.out
    assert said.err.startswith('warning: --fast does not compile, because there is no working compiler: Cannot find')
    assert said.err.count('\n') == 1
    fast.check_device(cfg)
    for flags in ('--compile', '--fast --compile'):
        with pytest.raises(ValueError, match=r'^compile_parts \(--compile\) needs a working compiler: Cannot find'):
            fast.check_device(write_flags(flags))


def test_fast_leaves_what_it_does_not_know(device):
    device('cuda')
    cfg = write_flags(wrapper=dict(type='ApexOptimWrapper'), compile=True)  # MMEngine's own, of the whole step
    assert cfg.optim_wrapper.type == 'ApexOptimWrapper'
    assert 'compile_parts' not in cfg


@pytest.mark.parametrize(
    ('keys', 'expected'),
    [
        ({}, True),
        (dict(env_cfg=dict(cudnn_benchmark=False, mp_cfg=dict(opencv_num_threads=0))), True),
        (dict(default_scope='mmseg'), True),
        (dict(default_scope='mmseg', model=dict(backbone={}, data_preprocessor=dict(size_divisor=32))), None),
        (dict(default_scope='mmseg', model=dict(backbone={}), data_preprocessor=dict(size=(8, 8))), True),
        (dict(default_scope='mmdet'), None),
        (dict(default_scope='mmdet', env_cfg=dict(cudnn_benchmark=False)), False),
        (dict(default_scope='mmdet', env_cfg=dict(cudnn_benchmark=True)), True),
        (dict(randomness=dict(deterministic=True)), False),
    ],
)
def test_cudnn_measures_where_all_images_have_one_size(device, keys, expected):
    device('cuda')
    env_cfg = write_flags(**keys).get('env_cfg') or {}
    assert env_cfg.get('cudnn_benchmark') is expected
    assert {**env_cfg, 'cudnn_benchmark': None} == {**keys.get('env_cfg', {}), 'cudnn_benchmark': None}


@pytest.mark.parametrize('name', ['cpu', 'cuda'])
def test_images_of_many_sizes_compile_in_channels_last(device, name):
    """In another memory format, each size is a graph."""
    device(name)
    cfg = write_flags('--compile', default_scope='mmdet')
    assert (cfg.compile_parts, cfg.compile_dynamic, cfg.channels_last) == (['backbone'], True, True)
    assert write_flags('--compile').get('channels_last') is None
    asked = write_flags('', compile_parts=['backbone'], compile_dynamic=True, channels_last=False)
    assert asked.channels_last is False


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
