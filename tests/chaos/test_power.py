"""The model of a disk that loses power: it may lose what was not synced, and nothing else."""

from chaos.power import after_power_loss

OLD, NEW = dict(a=b'old'), b'new'
WRITE = [('create', 'b'), ('write', 'b', NEW)]
SYNC, RENAME, SYNC_FOLDER = ('fsync', 'b'), ('rename', 'b', 'a'), ('fsync', '')


def states(*operations) -> list[dict]:
    return list(after_power_loss(OLD, list(operations)))


def test_an_atomic_write_leaves_one_of_both():
    whole = [*WRITE, SYNC, RENAME, SYNC_FOLDER]
    for count in range(len(whole) + 1):
        assert all(state['a'] in (b'old', NEW) for state in states(*whole[:count]))
    assert states(*whole) == [dict(a=NEW)]


def test_a_rename_that_is_not_synced_goes_both_ways():
    assert {state['a'] for state in states(*WRITE, SYNC, RENAME)} == {b'old', NEW}


def test_content_that_is_not_synced_may_be_lost():
    assert dict(a=b'') in states(*WRITE, RENAME, SYNC_FOLDER)
    assert dict(a=b'') in states(('create', 'a'), ('write', 'a', NEW), SYNC_FOLDER)


def test_an_unlink_may_come_before_a_rename():
    assert {} in states(*WRITE, SYNC, ('unlink', 'a'), RENAME)
    assert {} not in states(*WRITE, SYNC, RENAME, SYNC_FOLDER)
