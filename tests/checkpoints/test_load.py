"""What mmengine writes into a checkpoint beside weights is read as data, whatever the schedule."""

import numpy as np
import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.optim import OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS
from torch import nn

from mmsb.checkpoints.load import load_state_dict

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
    torch.save(checkpoint, tmp_path / 'epoch_1.pth')
    loaded = load_state_dict(str(tmp_path / 'epoch_1.pth'))
    assert all(torch.equal(loaded[key], value) for key, value in net.state_dict().items())
