"""The end of one process is the end of all, within seconds, with the right exit code and in one line."""

import itertools

import pytest
from chaos.pair import FAULTS, GONE, MOMENTS, fault_in_pair

RANKS = {'first': {0}, 'second': {1}, 'both': {0, 1}}
WITHOUT_A_HOOK = [
    ('nan', 'before the first'),
    ('nan without a gradient', 'before the first'),
    ('SIGTERM', 'before the first'),
]


@pytest.mark.parametrize('who', RANKS)
@pytest.mark.parametrize(
    ('fault', 'moment'), [case for case in itertools.product(FAULTS, MOMENTS) if case not in WITHOUT_A_HOOK]
)
def test_one_end_is_the_end_of_both(fault, moment, who, tmp_path):
    ranks, (_, code, says) = RANKS[who], FAULTS[fault]
    pair = fault_in_pair(tmp_path, fault, ranks, moment)
    codes = pair.wait()
    wanted = [code, code]
    if fault == 'SIGKILL':
        wanted = [code if rank in ranks else 1 for rank in range(2)]
    assert codes == wanted, pair.said()
    assert 'Traceback' not in pair.said()
    lines = pair.lines()
    causes = [line for line in lines if says in line]
    assert len(causes) == (len(ranks) < 2 if fault == 'SIGKILL' else 1), pair.said()
    # the store of the run goes with the first process: all that the other one can say is that it is gone
    assert [line for line in lines if line not in causes] in ([], [f'error (process 1): {GONE}'][: 0 in ranks])
    if fault.startswith('nan') and ranks == {1}:
        assert 'process 1' in causes[0]
