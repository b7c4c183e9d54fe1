"""All forms of a computation give the same, forward and backward, and networks built of any of them do."""

import itertools

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mmsb.models import SBResNetCifar, forms
from mmsb.models.forms import FORMS
from mmsb.models.spatial_bias import Reduction, concatenate, conv_of_concat


def test_the_table_and_its_docstring_name_these_forms():
    assert list(forms.TABLE) == list(FORMS)
    for computation, row in forms.TABLE.items():
        assert tuple(row) == forms.PLACES
        assert {*row.values()} <= {*FORMS[computation]}
    cells = [[cell.strip() for cell in line.split('|')[1:3]] for line in forms.__doc__.splitlines() if '|' in line][2:]
    owners = itertools.accumulate((owner for owner, _ in cells), lambda before, now: now or before)
    assert [(owner, form) for owner, (_, form) in zip(owners, cells, strict=True)] == [
        (computation, form) for computation, names in FORMS.items() for form in names
    ]


@pytest.mark.parametrize('form', FORMS['read'])
@pytest.mark.parametrize('kernel_size', [1, 3])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('channels', [5, 16])
def test_reading_maps_is_a_sum_of_two_convolutions(form, kernel_size, memory_format, channels, monkeypatch):
    monkeypatch.setitem(forms.TABLE['read'], 'cpu', form)
    torch.manual_seed(0)
    options = dict(stride=2, padding=kernel_size // 2, bias=False, dtype=torch.double)
    conv, own = nn.Conv2d(channels, 7, kernel_size, **options), nn.Conv2d(3, 7, kernel_size, **options)
    y = torch.randn(2, channels, 9, 8, dtype=torch.double).to(memory_format=memory_format).requires_grad_()
    maps = torch.randn(2, 3, 9, 8, dtype=torch.double, requires_grad=True)
    weights = torch.randn(2, 7, 5, 4, dtype=torch.double)
    found, expected = [], []
    for outputs, out in ((found, conv_of_concat(conv, own, y, maps)), (expected, conv(y) + own(maps))):
        inputs = (y, maps, conv.weight, own.weight)
        outputs += [out, *torch.autograd.grad((out * weights).sum(), inputs)]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('form', FORMS['gradients'])
def test_gradients_of_a_concatenation(form, monkeypatch):
    monkeypatch.setitem(forms.TABLE['gradients'], 'cpu', form)
    y = torch.randn(2, 4, 3, 5).to(memory_format=torch.channels_last).requires_grad_()
    maps = torch.randn(2, 3, 3, 5, requires_grad=True)
    weights = torch.randn(2, 7, 3, 5)
    first, second = torch.autograd.grad((concatenate(y, maps) * weights).sum(), (y, maps))
    torch.testing.assert_close((first, second), (weights[:, :4], weights[:, 4:]), rtol=0, atol=0)


def test_maps_in_the_type_of_the_weights_or_of_the_features(monkeypatch):
    reduction = Reduction(4, 5, 1, bias=False, norm_cfg=dict(type='BN'))
    x = torch.randn(2, 4, 6, 6).to(memory_format=torch.channels_last)
    for form, kind, dense in (('weights', torch.float32, torch.contiguous_format),
                              ('features', torch.bfloat16, torch.channels_last)):  # fmt: skip
        monkeypatch.setitem(forms.TABLE['maps'], 'cpu', form)
        with torch.autocast('cpu', torch.bfloat16):
            out = reduction(x)
        assert out.dtype == kind
        assert out.is_contiguous(memory_format=dense)


def test_a_gpu_takes_the_plain_forms_unless_the_result_must_be_deterministic():
    with FakeTensorMode():
        x = torch.empty(2, 3, 8, 8, device='cuda')
    assert [forms.form_of(name, x) for name in ('pool', 'upsample')] == ['kernel', 'kernel']
    torch.use_deterministic_algorithms(True)
    try:
        assert [forms.form_of(name, x) for name in ('pool', 'upsample')] == ['matrix', 'matrix']
        assert forms.form_of('pool', torch.empty(2, 3, 8, 8)) == 'kernel', 'on a CPU it is deterministic'
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize('device', ['cpu', pytest.param('cuda', marks=pytest.mark.gpu)])
def test_networks_of_all_forms_are_equal(device, monkeypatch):
    torch.manual_seed(0)
    network = SBResNetCifar(11, base_channels=4).to(device).double()
    images = torch.randn(3, 3, 20, 28, dtype=torch.double).to(device)
    place = 'cpu' if device == 'cpu' else 'gpu'
    results = {}
    for chosen in itertools.product(*FORMS.values()):
        for computation, form in zip(FORMS, chosen, strict=True):
            monkeypatch.setitem(forms.TABLE[computation], place, form)
        out = network(images)[-1]
        results[chosen] = [out, *torch.autograd.grad(out.square().sum(), list(network.parameters()))]
    first = results.popitem()[1]
    assert len(results) == 47
    for chosen, found in results.items():
        torch.testing.assert_close(
            found, first, rtol=1e-8, atol=1e-8, msg=lambda text, chosen=chosen: f'{chosen}: {text}'
        )
