"""Checks of options."""

import pytest

from mmsb.options import positive_integer


@pytest.mark.parametrize('value', [0, -3, 2.0, '2', True, None])
def test_what_is_no_positive_integer_is_named(value):
    with pytest.raises(ValueError, match='num_maps must be an integer of at least 1, got ') as caught:
        positive_integer('num_maps', value)
    assert str(caught.value).endswith(repr(value))


def test_a_positive_integer_is_returned():
    assert [positive_integer('num_maps', value) for value in (1, 80)] == [1, 80]
