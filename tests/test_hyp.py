"""utils.hyp: overrides from files, and what they may say."""

import pytest

from utils.errors import UserError
from utils.hyp import Hyp


@pytest.mark.parametrize(
    "text", ['{"lr0": 0.02, "close_mosaic": 3}', "lr0: 0.02  # faster\nclose_mosaic: 3\n", "lr0=0.02\nclose_mosaic=3\n"]
)
def test_a_file_overrides_what_it_names(text, tmp_path):
    (tmp_path / "hyp.txt").write_text(text)
    hyp = Hyp.load(tmp_path / "hyp.txt")
    assert (hyp.lr0, hyp.close_mosaic, hyp.momentum) == (0.02, 3, Hyp().momentum)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("speed: 9", "speed is not a hyper-parameter; there are: lr0"),
        ("lr0: fast", "lr0=fast: must be a number, 0 to 100"),
        ("lr0: nan", "lr0=nan: must be a number, 0 to 100"),
        ("momentum: 1", "momentum=1: must be a number, at least 0 and below 1"),
        ("nominal_batch: 0", "nominal_batch=0: must be a whole number, 1 to 65536"),
        ("most_anchors: inf", "most_anchors=inf: must be a whole number, 0 to 1000"),
        ("most_anchors: 1.5", "most_anchors=1.5: must be a whole number"),
        ("translate: -1", "translate=-1: must be a number, 0 to 1"),
        ('{"lr0": }', "hyp.txt:1: not valid JSON"),
        ('{"lr0": 1, "lr0": 1}', "lr0 stands in it twice"),
        ("lr0: 1\n lr0 = 0.1", "lr0 stands in it twice"),
        ('{"lr0": ' + "[" * 100_000, "holds what is no hyper-parameter"),
        ('{"lr0": ' + "1" * 5000 + "}", "holds what is no hyper-parameter"),
    ],
)
def test_nonsense_is_one_line(text, said, tmp_path):
    (tmp_path / "hyp.txt").write_text(text)
    with pytest.raises(UserError, match=said):
        Hyp.load(tmp_path / "hyp.txt")


def test_a_checkpoint_of_another_version_restores_what_it_knows():
    assert Hyp.restored({"lr0": 0.5, "gone": 1}, "x.pt") == Hyp(lr0=0.5)
