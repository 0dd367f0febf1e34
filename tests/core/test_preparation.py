"""utils.core.preparation: what the settings of a checkpoint say, and what they leave open."""

import pytest

from utils.core.preparation import PREPARATION, Preparation


@pytest.mark.parametrize("name", PREPARATION)
def test_settings_say_it_and_come_back(name):
    told = {"img_size": 416, name: True}
    prepared = Preparation.of(told)
    assert getattr(prepared, name)
    assert sum(prepared.to_settings().values()) == 1
    assert Preparation.of(prepared.to_settings()) == prepared


def test_what_is_not_said_is_not_so():
    assert Preparation.of({}) == Preparation(gray=False, maxabs=False, stretch=False)
