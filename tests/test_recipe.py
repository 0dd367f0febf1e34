"""utils.recipe: how a training goes that names no optimizer and no batch, by the number of its pictures."""

import pytest

import train
from tests.test_train import here  # noqa: F401
from utils.cfg import read_data
from utils.recipe import FEW, Recipe, settle


@pytest.mark.parametrize(
    ("pictures", "penalised", "processes", "wanted"),
    [
        (1, False, 1, Recipe(adam=True, batch_size=8, accumulate=1)),
        (FEW, False, 1, Recipe(adam=True, batch_size=8, accumulate=1)),
        (FEW + 1, False, 1, Recipe(adam=False, batch_size=16, accumulate=0)),
        (100, True, 1, Recipe(adam=False, batch_size=8, accumulate=1)),
        (100, False, 3, Recipe(adam=True, batch_size=9, accumulate=1)),
        (100_000, False, 6, Recipe(adam=False, batch_size=18, accumulate=0)),
    ],
)
def test_the_number_of_pictures_decides(pictures, penalised, processes, wanted):
    assert Recipe.of(pictures, penalised, processes) == wanted


@pytest.mark.parametrize(
    ("flags", "wanted", "said"),
    [
        ("", (True, 8, 1), "8 pictures: AdamW, batches of 8, 1 a step"),
        ("--no-adam", (False, 8, 1), "8 pictures: SGD, batches of 8, 1 a step"),
        ("--batch-size 2", (True, 2, 1), "8 pictures: AdamW, batches of 2, 1 a step"),
        ("--accumulate 0", (True, 8, 0), "8 pictures: AdamW, batches of 8, summed up to the nominal batch"),
        ("--prune 0", (True, 8, 1), "8 pictures: AdamW, batches of 8, 1 a step"),
        ("--prune 0 --s 0.01", (False, 8, 1), "8 pictures: SGD, batches of 8, 1 a step"),
        ("--prune 0 --sparse-schedule dynamic", (False, 8, 1), "8 pictures: SGD, batches of 8, 1 a step"),
        ("--prune 0 --s 0.01 --adam", (True, 8, 1), "8 pictures: AdamW, batches of 8, 1 a step"),
    ],
)
def test_what_the_command_line_says_counts(here, flags, wanted, said):  # noqa: F811
    args = train.get_parser().parse_args(flags.split())
    assert settle(args, read_data("d.data")) == said
    assert (args.adam, args.batch_size, args.accumulate) == wanted
    assert settle(args, read_data("d.data")) == said  # what was filled in stays
