"""Everything that mmengine writes into a checkpoint loads as data, whatever the schedule."""

import numpy as np
import pytest
import torch
from chaos.forge import Call, archive, pickled
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.optim import OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS
from safetensors.torch import save_file
from torch import nn

from mmsb.checkpoints import load
from mmsb.checkpoints.load import load_checkpoint
from mmsb.checkpoints.plain import make_plain, restore

SCHEDULES = {
    'OneCycleLR': dict(eta_max=0.1, total_steps=9),
    'MultiStepLR': dict(milestones=[2, 4]),
    'CosineAnnealingLR': dict(T_max=9),
    'PolyLR': dict(),
    'LinearLR': dict(),
    'ReduceOnPlateauLR': dict(monitor='loss'),
}


@pytest.mark.parametrize('name', SCHEDULES)
def test_a_whole_training_checkpoint_is_data(name, tmp_path):
    net = nn.Linear(2, 2)
    optim_wrapper = OptimWrapper(torch.optim.AdamW(net.parameters(), lr=0.1))
    optim_wrapper.update_params(net(torch.ones(1, 2)).sum())
    scheduler = PARAM_SCHEDULERS.build(dict(type=name, **SCHEDULES[name]), default_args=dict(optimizer=optim_wrapper))
    hub = MessageHub(f'hub-{name}')
    hub.update_scalar('train/loss', 0.5)
    hub.update_info('best_score', np.float64(0.5))
    hub.update_info('dataset_meta', dict(classes=('a', 'b'), palette=[[1, 2, 3]]))
    checkpoint = dict(
        meta=dict(epoch=1, cfg='a = 1', time='20261123'),
        state_dict=net.state_dict(),
        message_hub=hub.state_dict(),
        optimizer=optim_wrapper.state_dict(),
        param_schedulers=[scheduler.state_dict()],
    )
    path = tmp_path / 'epoch_1.pth'
    torch.save(checkpoint, path)
    read = load_checkpoint(path)
    make_plain(checkpoint)
    torch.save(checkpoint, path)
    if torch.__version__ >= load.DATA_FROM:
        torch.load(path, weights_only=True)  # without our stand-ins
    for loaded in (read, restore(load_checkpoint(path))):
        assert all(torch.equal(loaded['state_dict'][key], value) for key, value in net.state_dict().items())
        before = dict(vars(scheduler))
        scheduler.load_state_dict(loaded['param_schedulers'][0])
        assert vars(scheduler) == before
        other = MessageHub(f'other-{name}')
        other.load_state_dict(loaded['message_hub'])
        assert (other.get_scalar('train/loss').current(), other.get_info('best_score')) == (0.5, 0.5)
        assert dict(other.state_dict()['resumed_keys']) == dict(hub.state_dict()['resumed_keys'])


@pytest.fixture
def _reader_as_before():
    before = dict(load._trusted)
    yield
    load._trusted.update(before)


@pytest.mark.usefixtures('_reader_as_before')
def test_where_torch_runs_what_is_in_a_pickle_it_takes_trust(tmp_path, monkeypatch):
    monkeypatch.setattr(load, 'DATA_FROM', (99,))
    for folder in ('own', 'other'):
        (tmp_path / folder).mkdir()
        torch.save(dict(weight=torch.ones(2)), tmp_path / folder / 'a.pth')
    save_file(dict(weight=torch.ones(2)), tmp_path / 'other/a.safetensors')
    load.install_reader(own=[tmp_path / 'own'])
    assert load_checkpoint(tmp_path / 'own/a.pth').keys() == {'weight'}
    assert load_checkpoint(tmp_path / 'other/a.safetensors').keys() == {'weight'}
    with pytest.raises(ValueError, match=r"a.pth' cannot be read as data: PyTorch .* --trust-checkpoint$") as error:
        load_checkpoint(tmp_path / 'other/a.pth')
    assert '\n' not in str(error.value)
    load.install_reader(trust=True)
    assert load_checkpoint(tmp_path / 'other/a.pth').keys() == {'weight'}


@pytest.mark.untrusted
def test_where_torch_has_known_holes_one_line_says_so(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(load, 'SOUND_FROM', (99,))
    monkeypatch.setattr(load, 'print_log', lambda text, **options: said.append(text))
    load._warn_once.cache_clear()
    torch.save(dict(weight=torch.ones(2)), tmp_path / 'a.pth')
    for _ in range(2):
        load_checkpoint(tmp_path / 'a.pth')
    assert said == [f"PyTorch {torch.__version__}'s reader of checkpoints has known security holes; 2.10 closes them"]


@pytest.mark.untrusted
def test_the_list_of_the_user_is_neither_used_nor_lost(tmp_path):
    """If a library adds the real `getattr` to torch's list, it would return what the stand-in refuses."""
    (tmp_path / 'attack.pth').write_bytes(archive(pickled(Call(getattr, HistoryBuffer, 'mro'))))
    with torch.serialization.safe_globals([getattr, HistoryBuffer]):
        with pytest.raises(ValueError, match='mro'):
            load_checkpoint(tmp_path / 'attack.pth')
        assert {getattr, HistoryBuffer} <= set(torch.serialization.get_safe_globals())
