"""utils.recipe: how a training goes that names no optimizer and no batch, by the number of its images."""

import pytest

import train
from tests.test_train import BASE, here, train_with  # noqa: F401
from utils.core.hyp import Hyp
from utils.core.options import options_of
from utils.data.data_file import read_data
from utils.pruning.sparsity_options import SparsityOptions
from utils.recipe import FEW, Course, Recipe, RecipeOptions, describe_finetuning, finetuning_epochs, settle


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
        ("", (True, 8, 1), "8 images: AdamW, batches of 8, 1 a step"),
        ("--no-adam", (False, 8, 1), "8 images: SGD, batches of 8, 1 a step"),
        ("--batch-size 2", (True, 2, 1), "8 images: AdamW, batches of 2, 1 a step"),
        ("--accumulate 0", (True, 8, 0), "8 images: AdamW, batches of 8, summed up to the nominal batch"),
        ("--prune 0", (True, 8, 1), "8 images: AdamW, batches of 8, 1 a step"),
        ("--prune 0 --s 0.01", (False, 8, 1), "8 images: SGD, batches of 8, 1 a step"),
        ("--prune 0 --sparse-schedule dynamic", (False, 8, 1), "8 images: SGD, batches of 8, 1 a step"),
        ("--prune 0 --s 0.01 --adam", (True, 8, 1), "8 images: AdamW, batches of 8, 1 a step"),
    ],
)
def test_what_the_command_line_says_counts(here, flags, wanted, said):  # noqa: F811
    args = vars(train.get_parser().parse_args(flags.split()))
    asked, sparsity = options_of(RecipeOptions, args), options_of(SparsityOptions, args)
    course = settle(asked, 100, read_data("d.data"), sparsity.penalised)
    assert str(course) == said
    assert course.recipe == RecipeOptions(*wanted)
    assert settle(course.recipe, 100, read_data("d.data"), penalised=True) == course  # what was filled in stays


@pytest.mark.parametrize(
    ("course", "steps"),
    [
        (Course(292, 8, True, 8, 1), 8 * 37),
        (Course(292, 8, True, 8, 4), 74),
        (Course(100_000, 2, False, 16, 0), 2 * 6250 // 4),
        (Course(5000, 4, False, 16, 0), 1000),  # 313 of the nominal batch; finetuning takes at least 1000
        (Course(100, 1, False, 16, 0), 7),  # where there are so many batches
        (Course(3, 1, True, 8, 4), 1),
    ],
)
def test_optimizer_steps(course, steps):
    assert course.steps == steps


def test_epochs_of_a_finetuning_with_the_whole_rate():
    assert finetuning_epochs(292) == 28  # of 37 steps: 27 have 999
    assert finetuning_epochs(100) == 77  # of 13
    assert finetuning_epochs(100_000) == 20
    assert finetuning_epochs(8) == 100


def test_the_line_of_finetuning_says_rate_and_why():
    said = describe_finetuning(Hyp(lr0_adam=0.0001, mosaic=0.0), Course(292, 8, True, 8, 1))
    assert said == "finetuning in 296 steps: rate 0.0001 (0.002 from 1,000 steps on), no mosaics (as in all of up to 10 epochs)"
    said = describe_finetuning(Hyp(lr0=0.005), Course(100, 40, False, 8, 1))
    assert said == "finetuning in 520 steps: rate 0.005 (0.01 from 1,000 steps on), mosaics (none in up to 10 epochs)"


def test_train_py_says_how_it_trains(here, capsys):  # noqa: F811
    train_with("--epochs 1 --name base --notest")
    base = BASE.replace("--cfg tiny.cfg", "--weights weights/last_base.pt")
    train_with("--epochs 2 --finetune --adam --notest --name small", base)
    output = capsys.readouterr().out
    assert output.count("8 images: SGD, batches of 4, 1 a step\n") == 1
    assert "8 images: AdamW, batches of 4, 1 a step\nfinetuning in 4 steps: rate 0.0001 " in output
    train_with("--epochs 2 --finetune --prune 0 --notest --name sparse", base)
    assert "finetuning" not in capsys.readouterr().out
