"""The short form of `make chaos`: a few faults of each kind, and all malicious checkpoints."""

import pytest

from chaos.campaign import CAMPAIGNS


@pytest.mark.parametrize('campaign', CAMPAIGNS, ids=lambda campaign: campaign.__name__)
def test_what_must_hold_holds(campaign, arena):
    row = campaign(arena, quick=True)
    assert row.notes == {}
    assert row.good == row.cases > 0
