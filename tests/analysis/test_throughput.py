"""Speed measurement: the order of the samples, the computed figures, and failures. No test asserts a speed."""

import copy
import json
import logging
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmsb.analysis import networks, plots, zoo
from mmsb.analysis import throughput as tp
from mmsb.analysis.memory import peak_on_cpu
from mmsb.analysis.steps import Setting, Step

PLAIN, SB = 'cifar100/resnet38_b64-300e_cifar100.py', 'cifar100/sb-resnet38_b64-300e_cifar100.py'
CPU = torch.device('cpu')
INFERENCE = Setting('inference', 2, (16, 16))
TRAINING = Setting('training', 2, (16, 16))


class Clock:
    """A clock that advances only when told to."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def call(self, seconds: float):
        def pass_time() -> None:
            self.seconds += seconds

        return pass_time


def test_samples_are_interleaved():
    order = []

    def taking(name: str):
        def take() -> float:
            order.append(name)
            return len(order)

        return take

    rounds = list(tp.interleave({name: taking(name) for name in 'ABC'}, 3, failed=None))
    assert ''.join(order) == 'ABCABCABC'
    assert rounds == [dict(A=1, B=2, C=3), dict(A=4, B=5, C=6), dict(A=7, B=8, C=9)]


@pytest.mark.parametrize('mode', ['deploy', 'onnxruntime'])
def test_a_deployed_network_is_measured_and_the_network_itself_is_kept(mode, monkeypatch):
    if mode == 'onnxruntime':
        pytest.importorskip('onnxruntime')
        pytest.importorskip('onnxscript')
    monkeypatch.setattr('mmsb.export.CHECKED', ((1, 40, 44), (2, 33, 64)))
    network = networks.Network(networks.Source('sb', 'demo/sb-resnet11_b64-10e_digits.py'), CPU, seed=0)
    before, model = copy.deepcopy(network.model.state_dict()), network.model
    step = Step(network, Setting('inference', 2, (16, 16), mode), INFERENCE.images(CPU, 0))
    step()
    assert not [m for m in network.model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert (step.file is not None) == (mode == 'onnxruntime')
    step.close()
    assert network.model is model
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)
    with pytest.raises(ValueError, match=f'{mode} is for inference'):
        Step(network, Setting('training', 2, (16, 16), mode), INFERENCE.images(CPU, 0))


def test_who_fails_is_left_out_and_the_others_go_on():
    seen, failures = [], {}

    def failing() -> float:
        seen.append('B')
        raise RuntimeError('no more')

    samples = dict(A=lambda: 1.0, B=failing, C=lambda: 3.0)
    rounds = list(tp.interleave(samples, 2, lambda name, error: failures.update({name: str(error)})))
    assert rounds == [dict(A=1.0, C=3.0)] * 2
    assert (seen, failures) == (['B'], dict(B='no more'))


@pytest.mark.parametrize(('calls', 'made'), [(1, 1), (4, 5)])
def test_a_sample_is_the_time_of_one_call(calls, made):
    clock = Clock()
    waits = []
    seconds = tp.sample(clock.call(0.25), calls, lambda: waits.append(clock.seconds), clock)
    assert seconds == 0.25
    assert clock.seconds == 0.25 * made, 'before several short calls there is one that is not timed'
    assert waits == [0.25 * (made - calls), 0.25 * made]


def test_quartiles_by_hand():
    assert tp.quartiles([4, 1, 3, 2, 5]) == (2, 3, 4)
    assert tp.quartiles([1, 2, 3, 4]) == (1.75, 2.5, 3.25)


def test_ratio_is_taken_within_each_round():
    """The machine is twice as slow in the second round: neither the ratio nor its spread changes."""
    plain = tp.Cell('plain', INFERENCE, [1.0, 2.0, 1.0])
    ours = tp.Cell('ours', INFERENCE, [1.5, 3.0, 1.8])
    summary = tp.summarise(ours, plain)
    assert summary['time_ratio'] == 1.5
    assert summary['time_ratio_quartiles'] == pytest.approx([1.5, 1.65])
    assert summary['ms'] == 1800
    assert summary['ms_quartiles'] == pytest.approx([1650, 2400])
    assert summary['images_per_s'] == pytest.approx(2 / 1.8)
    assert summary['samples_ms'] == [1500, 3000, 1800]
    assert tp.summarise(plain, plain)['time_ratio_quartiles'] == [1, 1]


def test_ratio_is_to_the_same_setting():
    cells = [
        tp.Cell('plain', INFERENCE, [1.0]),
        tp.Cell('ours', INFERENCE, [3.0]),
        tp.Cell('plain', TRAINING, [10.0]),
        tp.Cell('ours', TRAINING, [11.0]),
    ]
    assert [figures['time_ratio'] for figures in tp.summarise_all(cells, 'plain')] == pytest.approx([1, 3, 1, 1.1])


def test_an_empty_cell_has_a_reason_and_no_figures():
    cell = tp.Cell('ours', INFERENCE, [1.0], peak_bytes=5)
    cell.fail(RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to"))
    summary = tp.summarise(cell, tp.Cell('plain', INFERENCE, [1.0]))
    assert summary['reason'] == 'out of memory'
    assert [summary[key] for key in ('ms', 'ms_quartiles', 'time_ratio', 'peak_mib')] == [None] * 4
    assert tp.reason_of(MemoryError()) == 'out of memory'
    assert tp.reason_of(ValueError('GE takes\n  one size')) == 'GE takes one size'
    assert tp.reason_of(KeyError()) == 'KeyError'


@pytest.fixture(scope='module')
def sources() -> list[networks.Source]:
    return networks.sources_of([SB])[0]


def test_measure_two_networks(sources):
    plan = tp.Plan(rounds=2, warmup=1, sample_s=0)
    shown = []
    states = [
        [(cell.network, cell.setting.phase, len(cell.seconds)) for cell in cells]
        for cells in tp.measure(sources, [INFERENCE, TRAINING], plan, CPU, lambda *told: shown.append(told))
    ]
    assert states[1] == [('resnet38', 'inference', 1), ('sb-resnet38', 'inference', 1)], 'told after each round'
    assert states[-1] == [(s.name, phase, 2) for phase in ('inference', 'training') for s in sources]
    assert shown[-1] == ('samples', 12, 12)


def test_a_refusal_is_an_empty_cell(sources):
    """With one image of one pixel, batch norm has nothing to normalise; too large a batch does not fit in memory."""
    plan = tp.Plan(rounds=1, warmup=1, sample_s=0)
    settings = [Setting('training', 1, (4, 4)), Setting('inference', 10**9, (4, 4)), INFERENCE]
    *_, cells = tp.measure(sources, settings, plan, CPU)
    refused, too_large, measured = (cells[2 * i + 1] for i in range(3))
    assert 'Expected more than 1 value per channel' in refused.reason
    assert too_large.reason == 'out of memory'
    assert measured.reason is None
    assert len(measured.seconds) == 1


def test_a_step_leaves_nothing_behind(sources):
    network = networks.Network(sources[1], CPU, seed=0)
    before = network.model.backbone.conv1.weight.clone()
    setting = Setting('training', 2, (16, 16), 'eager', 'channels_last', 'bf16')
    step = Step(network, setting, setting.images(CPU, 0))
    weights = step.held_bytes()
    step()
    assert not torch.equal(before, network.model.backbone.conv1.weight)
    assert step.held_bytes() == weights + 4 * network.params, 'the momentum'
    assert all(weight.grad is None for weight in network.model.parameters())
    step.close()
    inference = Step(network, INFERENCE, INFERENCE.images(CPU, 0))
    inference()
    assert not network.model.training
    assert network.model.backbone.conv1.weight.is_contiguous()


def test_plain_network_is_found_or_added():
    names = [source.name for source in networks.sources_of([SB])[0]]
    assert names == ['resnet38', 'sb-resnet38']
    sources, plain = networks.sources_of([SB, PLAIN, SB])
    assert [source.name for source in sources] == ['sb-resnet38', 'resnet38']
    assert plain.name == 'resnet38'
    (plain, _), _ = networks.sources_of(['imagenet/gc-resnet50_b256-100e_in1k.py'])
    assert plain.config == networks.PLAIN_IMAGENET
    (plain, _), _ = networks.sources_of(['cifar100/sb-gc-resnet38_b64-300e_cifar100.py'])
    assert plain.backbone_options == 'plugins=None; spatial_bias=None'
    assert networks.is_plain(plain.load())
    assert networks.sources_of([PLAIN, SB], plain=SB)[1].name == 'sb-resnet38'


def test_networks_of_detectors_have_different_names():
    sources, plain = networks.sources_of(['coco/faster-rcnn_sb-r50_fpn_1x_coco.py'])
    assert [source.name for source in sources] == ['faster-rcnn_r50_fpn_1x_coco', 'faster-rcnn_sb-r50_fpn_1x_coco']
    assert plain is sources[0]


def test_systems_are_those_of_the_papers_comparison():
    names = [source.name for source in networks.sources_of(zoo.systems())[0]]
    assert len(names) == 15
    assert {'resnet50', 'sb-resnet50', 'sb-bat-resnet50', 'reduced-nl-resnet50'} <= set(names)
    assert zoo.paper_row('imagenet/sb-resnet50_b256-100e_in1k.py')['top1'] == '76.86'
    assert zoo.paper_row('imagenet/sb-resnet101_b256-100e_in1k.py') is None


def test_backbone_and_neck_of_a_detector():
    config = 'demo/faster-rcnn_sb-r50c16_fpn_b16-8e_digits-scenes.py'
    network = networks.Network(networks.Source('detector', config), CPU, seed=0)
    images = torch.randn(1, 3, 64, 96)
    outputs = network.forward(images)
    assert [tuple(out.shape[-2:]) for out in outputs][:4] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    network.loss(images).backward()


@pytest.mark.skipif(sys.platform != 'linux', reason="reads Linux's /proc")
def test_peak_memory_on_the_cpu(sources):
    peak = peak_on_cpu(sources[1], Setting('training', 64, (32, 32)), seed=0)
    network = networks.Network(sources[1], CPU, seed=0)
    held = 4 * (3 * network.params + 64 * 3 * 32 * 32)  # weights, momentum, gradients, images
    outputs = 4 * 64 * zoo.measure(sources[1].load()).activations  # of convolutions: the backward pass needs them all
    assert held + outputs < peak < held + 6 * outputs


@pytest.mark.skipif(sys.platform != 'linux', reason='a limit of Linux')
def test_an_allocation_beyond_the_free_memory_fails():
    code = (
        'from mmsb.analysis import memory; import torch; memory._SHARE_OF_FREE = 0.01; memory.limit_to_free_memory()\n'
        'torch.empty(2**20)\n'
        'torch.empty(2**33, dtype=torch.uint8)'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert 'line 3' in done.stderr
    assert "can't allocate memory" in done.stderr.splitlines()[-1]


def test_tool_measures_two_sizes(tmp_path, run_tool):
    arguments = ['--sizes', '16', '16x24', '--batch-sizes', '2', '--repeats', '2', '--warmup', '1', '--sample-s', '0']
    files = ['--json', 'out.json', '--plot', 'out.png']
    done = run_tool('analysis/throughput.py', SB, *arguments, *files, cwd=tmp_path, fresh=True)
    assert done.returncode == 0, done.stderr
    assert 'inference, batch 2, 16 x 24, eager, nchw, fp32' in done.stdout
    assert '| sb-resnet38 | ' in done.stdout
    assert 'Peak memory is not measured' in done.stdout
    assert (tmp_path / 'out.png').stat().st_size > 10_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ['out.json', 'out.png']
    data = json.loads((tmp_path / 'out.json').read_text())
    about = data['machine']
    assert about['command'].startswith(f'throughput.py {SB} --sizes 16 16x24')
    assert (about['seed'], about['device'], about['threads'], about['torch']) == (0, 'cpu', 1, torch.__version__)
    assert {'cpu', 'cores', 'date', 'load_average', 'python'} <= set(about)
    assert data['complete'] is True
    assert data['plain'] == 'resnet38'
    assert data['networks']['sb-resnet38']['paper_top1'] == 77.56
    assert len(data['results']) == 2 * 2 * 2
    for figures in data['results']:
        assert len(figures['samples_ms']) == 2
        assert figures['ms_quartiles'][0] <= figures['ms'] <= figures['ms_quartiles'][1]
        assert (figures['time_ratio'] == 1) == (figures['network'] == 'resnet38')


@pytest.mark.parametrize(('size', 'there'), [((224, 224), True), ((448, 448), False)])
def test_speed_of_the_paper_stands_beside_its_image_size_alone(size, there):
    tool = runpy.run_path(str(Path(__file__).resolve().parents[2] / 'tools/analysis/throughput.py'))
    cells = [tp.Cell(name, Setting('inference', 8, size), [1.0, 1.1]) for name in ('resnet50', 'sb-resnet50')]
    printed = tool['table'](tp.summarise_all(cells, 'resnet50'), {'resnet50': 1.0, 'sb-resnet50': 1.11})
    assert ('1.11' in printed, 'paper' in printed) == (there, there)


WRONG = {
    'nothing': ([], 2, 'name a config, or use --all-systems'),
    'phase': ([SB, '--phases', 'sleep'], 2, "invalid choice: 'sleep'"),
    'size': ([SB, '--sizes', '224x'], 2, "must be pixels, 224 or 800x1333 (height x width), got '224x'"),
    'batch': ([SB, '--batch-sizes', '0'], 2, "must be a number of at least 1, got '0'"),
    'folder': ([SB, '--json', 'none/out.json'], 2, 'the folder of --json none/out.json does not exist'),
    'config': (['none.py'], 1, "error: config 'none.py' does not exist"),
    'device': ([SB, '--device', 'tpu'], 1, "error: --device must be cpu, cuda or cuda:N, got 'tpu'"),
}


@pytest.mark.parametrize('name', WRONG)
def test_wrong_arguments_are_one_line(name, monkeypatch, capsys):
    arguments, code, message = WRONG[name]
    script = Path(__file__).resolve().parents[2] / 'tools/analysis/throughput.py'
    monkeypatch.setattr(sys, 'argv', [str(script), *arguments])
    try:
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(script), run_name='__main__')
    finally:
        logging.disable(logging.NOTSET)
    assert stopped.value.code == code
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_accuracy_is_drawn_where_the_paper_has_it(tmp_path):
    cells = [tp.Cell(name, INFERENCE, [1.0, 1.1]) for name in ('resnet50', 'sb-resnet50', 'other')]
    results = tp.summarise_all(cells, 'resnet50')
    top1 = {'resnet50': 76.05, 'sb-resnet50': 76.86}
    assert plots.accuracy_against_speed(results, top1, tmp_path / 'a.png')
    assert (tmp_path / 'a.png').exists()
    assert not plots.accuracy_against_speed(results, {}, tmp_path / 'b.png')
    assert not (tmp_path / 'b.png').exists()
