"""utils.core.hyp: overrides from files, and what they may say."""

import pytest

from utils.core.errors import UserError
from utils.core.hyp import DIRECTED, GENTLE, QUANTIZED, Hyp, preset


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


@pytest.mark.parametrize(
    ("epochs", "steps", "adam", "sgd", "mosaic"),
    [
        (8, 296, 0.0001, 0.0005, 0.0),
        (1, 1, 0.0001, 0.0005, 0.0),
        (10, 300, 0.0001, 0.0005, 0.0),
        (11, 300, 0.0001, 0.0005, 1.0),
        (30, 390, 0.0001 * 20**0.21791, 0.0005 * 20**0.21791, 1.0),  # log(1.3) / log(10 / 3)
        (50, 548, 0.0004477, 0.002238, 1.0),  # half of the way from 300 to 1000 on a logarithmic scale: the geometric means
        (30, 1000, 0.002, 0.01, 1.0),
        (8, 100_000, 0.002, 0.01, 0.0),
    ],
)
def test_the_rate_of_finetuning_goes_by_its_steps(epochs, steps, adam, sgd, mosaic):
    hyp = Hyp.load(None, preset(finetune=True, quantized=False, epochs=epochs, steps=steps))
    assert (hyp.lr0_adam, hyp.lr0) == (pytest.approx(adam, rel=1e-3), pytest.approx(sgd, rel=1e-3))
    assert (hyp.mosaic, hyp.warmup_bias_lr, hyp.least_steps) == (mosaic, 0.0, 1000)


def test_the_rest_of_finetuning_becomes_the_usual_with_the_rate():
    short, middle, long = (Hyp(**preset(finetune=True, quantized=False, epochs=30, steps=n)) for n in (300, 548, 1000))
    assert (short.ema_share, short.lrf, short.warmup_batches) == (0.2, 0.05, 50)
    assert (middle.ema_share, middle.lrf) == (pytest.approx(0.1, rel=1e-3), pytest.approx(0.0005**0.5, rel=1e-3))
    assert long == Hyp(warmup_bias_lr=0.0, least_steps=1000, static_share=0.0)


def test_what_a_training_does_decides_its_preset(tmp_path):
    assert preset(finetune=False, quantized=False) == {}
    assert preset(finetune=True, quantized=True, directed=True) == QUANTIZED
    assert preset(finetune=True, quantized=False, directed=True) == DIRECTED
    assert (DIRECTED["lr0_adam"], DIRECTED["lrf"], GENTLE["lrf"]) == (0.0003, 0.2, 0.05)
    (tmp_path / "h.yaml").write_text("lrf: 0.5\nmosaic: 0.25\n")
    hyp = Hyp.load(tmp_path / "h.yaml", preset(finetune=True, quantized=False, epochs=8, steps=296))
    assert (hyp.lrf, hyp.mosaic, hyp.lr0_adam) == (0.5, 0.25, 0.0001)
