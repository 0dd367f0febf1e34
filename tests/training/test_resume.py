"""train.py --resume after things have moved: what is given explicitly is where they are now."""

import os
from pathlib import Path

import pytest

import train
from tests.test_train import here, interrupt_at, train_with  # noqa: F401
from utils.core.errors import UserError
from utils.network.checkpoint import load_checkpoint, save_checkpoint
from utils.scripts.cli import Parser

RESUME = "--resume --workers 0 --device cpu"


@pytest.fixture
def moved(here, monkeypatch):  # noqa: F811
    """A run cut short after its second epoch, whose .data file is called otherwise since."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, 6)
        train_with("--epochs 3")
    Path("d.data").rename("new.data")
    return here


def test_without_data_it_says_what_to_give(moved):
    with pytest.raises(UserError, match="its run's --data d.data does not exist any more; say with --data where it is now"):
        train_with(RESUME, base="")


def test_a_given_data_wins(moved):
    assert train_with(f"{RESUME} --data new.data --logdir=", base="")["epochs"] == 3


def test_data_of_other_classes_is_refused(moved):
    Path("other.names").write_text("red\nblue\n")
    Path("other.data").write_text(Path("new.data").read_text() + "names=other.names\n")
    text = "".join(f"{n}\n" for n in Path("new.data").read_text().splitlines() if not n.startswith("names"))
    Path("other.data").write_text(text + "names=other.names\n")
    with pytest.raises(UserError, match=r"other.data: class 1 is blue, but green in the run of .*last.pt: another dataset"):
        train_with(f"{RESUME} --data other.data", base="")


def test_another_cfg_is_refused_and_the_same_is_not(moved):
    Path("other.cfg").write_text(Path("tiny.cfg").read_text().replace("leaky", "mish"))
    with pytest.raises(UserError, match="--cfg other.cfg: describes another network than weights/last.pt"):
        train_with(f"{RESUME} --data new.data --cfg other.cfg", base="")
    assert train_with(f"{RESUME} --data new.data --cfg tiny.cfg --logdir=", base="")["epochs"] == 3


def test_what_stands_on_the_command_line_is_known_even_where_it_is_the_default():
    args = train.get_parser().parse_args(["--batch_size", "16", "--no-ema", "--data=x"])
    assert args.given == {"batch_size", "ema", "data"}
    assert "given" not in vars(args)
    parser = Parser("x")
    parser.add_argument("--n", type=int, default=3)
    assert [parser.parse_args(words).given for words in ([], ["--n", "3"])] == [frozenset(), {"n"}]
    assert [parser.accepts("n", value) for value in (5, "5", 5.0, True, None, [])] == [True, False, False, False, False, False]


def test_where_images_are_kept():
    words = ([], ["--cache-images"], ["--cache_images", "disk"], ["--cache-images", "ram", "--rect"], ["--no-cache-images"])
    assert [train.get_parser().parse_args(given).cache_images for given in words] == [None, "ram", "disk", "ram", ""]
    with pytest.raises(SystemExit):
        train.get_parser().parse_args(["--cache-images", "tape"])


def test_where_images_are_kept_is_a_matter_of_the_call(moved):
    """Whatever the checkpoint remembers, True for one, as it once was."""
    checkpoint = load_checkpoint("weights/last.pt")
    save_checkpoint("weights/last.pt", checkpoint | {"args": checkpoint["args"] | {"cache_images": True}})
    assert train_with(f"{RESUME} --data new.data --logdir= --cache-images disk", base="")["epochs"] == 3
    kept = Path(os.environ["XDG_CACHE_HOME"], "darkedge", "images")
    assert len([*kept.glob("train-64-*.images"), *kept.glob("valid-64-*.images")]) >= 2
