"""train.py: --single-cls, --image-weights, cls_weights, background images, and the quick checks at its start."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

import make_cfg
from tests.test_train import BASE, CFG, SIZE, here, interrupt_at, results, train_in_two_processes, train_with  # noqa: F401
from utils.core.errors import UserError
from utils.core.hyp import Hyp
from utils.core.preparation import Preparation
from utils.data.class_balance import image_weights
from utils.data.datasets import create_loader
from utils.detection.loss import DetectionLoss
from utils.network.checkpoint import load_checkpoint

ONE = BASE.replace("tiny.cfg", "one.cfg")
DULL = "degrees: 0\ntranslate: 0\nscale: 0\nhsv_h: 0\nhsv_s: 0\nhsv_v: 0\nfliplr: 0\nmosaic: 0\n"


@pytest.fixture
def one(here) -> Path:  # noqa: F811
    """Beside the dataset of two classes a cfg for one."""
    (here / "one.cfg").write_text(CFG.replace("classes=2", "classes=1").replace("filters=14", "filters=12"))
    return here


# --- --single-cls ---


def test_single_cls_trains_all_classes_as_one(one, capsys):
    train_with("--epochs 1 --single-cls --notest", ONE)
    last = load_checkpoint("weights/last.pt")
    assert last["names"] == ["object"]
    output = capsys.readouterr().out
    assert "train: 8 images, 16 boxes" in output
    assert "next: python detect.py --weights weights/best.pt" in output
    assert results()["cls"][0] > 0  # scores are objectness times class probability, of one class too


def test_single_cls_says_how_to_make_the_cfg(here):  # noqa: F811
    with pytest.raises(UserError, match=r"tiny.cfg: --single-cls needs .* classes=1, these have \[2\]") as refused:
        train_with("--epochs 1 --single-cls")
    assert not Path("weights").exists()
    # and what it says works
    assert "write the line classes=1 into a file one.data" in str(refused.value)
    (here / "one.data").write_text("classes=1\n")
    make_cfg.main(make_cfg.get_parser().parse_args(str(refused.value).split("make_cfg.py ")[1].split()))
    figures = train_with("--epochs 1 --single-cls", BASE.replace("tiny.cfg", "tiny-one.cfg"))
    assert figures["last"]["targets"] == 8
    assert [c["name"] for c in figures["last"]["per_class"]] == ["object"]


def test_single_cls_drops_boxes_that_only_differed_in_their_class(one):
    label = one / "train" / "0.txt"
    row = label.read_text().splitlines()[0]
    label.write_text(f"0{row[1:]}\n1{row[1:]}\n")
    loader = create_loader("train", classes=1, label_classes=2, img_size=64, batch_size=4, training=False, workers=0)
    assert [len(rows) for rows in loader.dataset.labels] == [1] + [2] * 7
    assert {float(c) for rows in loader.dataset.labels for c in rows[:, 0]} == {0.0}
    with pytest.raises(UserError, match="class 1, but the .data has classes=1"):
        create_loader("train", classes=1, img_size=64, batch_size=4, training=False, workers=0)


def test_single_cls_resumes(one, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, 4)
        train_with("--epochs 2 --single-cls", ONE)
    train_with("--resume", ONE)
    assert load_checkpoint("weights/last.pt")["names"] == ["object"]


# --- --image-weights ---


def only_green_in(folder: Path, numbers: range) -> None:
    """Take the green boxes (class 1) out of all images but these."""
    for path in folder.glob("*.txt"):
        if int(path.stem) not in numbers:
            path.write_text("".join(r for r in path.read_text().splitlines(keepends=True) if r.startswith("0")))


def drawn(loader) -> list[int]:
    return [draw.index for batch in loader.batch_sampler for draw in batch]


def test_pictures_of_a_rare_class_come_more_often(here):  # noqa: F811
    only_green_in(here / "train", range(1))
    loader = create_loader("train", classes=2, img_size=64, batch_size=4, training=True, workers=0, seed=1)
    plain = drawn(loader)
    dataset = loader.dataset
    dataset.weights = image_weights(dataset.labels, 2)
    share = 8**0.5 / (8**0.5 + 7)
    counts = []
    for epoch in range(200):
        dataset.set_epoch(epoch)
        counts.append(drawn(loader).count(0))
    assert sorted(plain) == list(range(8))
    assert set(counts) == {2, 3}
    assert np.mean(counts) == pytest.approx(8 * share, abs=0.1)
    partners = [i for batch in loader.batch_sampler for draw in batch for i in draw.partners]
    assert len(partners) == 24
    assert all(isinstance(i, int) and 0 <= i < 8 for i in partners)


def test_partners_of_mosaics_are_drawn_by_weight_too(here):  # noqa: F811
    loader = create_loader("train", classes=2, img_size=64, batch_size=4, training=True, workers=0)
    loader.dataset.weights = np.array([100.0] + [1e-9] * 7)
    assert {i for batch in loader.batch_sampler for draw in batch for i in draw.partners} == {0}
    seen = []
    loader.dataset._picture = lambda index: seen.append(index) or (np.zeros((64, 64, 3), np.uint8), np.zeros((0, 5)))
    list(loader)
    assert set(seen) == {0}
    assert len(seen) == 8 * 4


def test_ranks_share_the_weighted_draws(here):  # noqa: F811
    options = {"classes": 2, "img_size": 64, "batch_size": 4, "training": True, "workers": 0, "seed": 5}
    loaders = [create_loader("train", **options)]
    loaders += [create_loader("train", rank=rank, world_size=2, **options) for rank in (0, 1)]
    for loader in loaders:
        loader.dataset.weights = np.arange(1.0, 9.0)
    whole, first, second = (list(loader.batch_sampler) for loader in loaders)
    for batch, a, b in zip(whole, first, second, strict=True):
        assert [batch[0], batch[2]] == a
        assert [batch[1], batch[3]] == b


def test_image_weights_follow_rarity_and_the_last_evaluation(here, monkeypatch):  # noqa: F811
    only_green_in(here / "train", range(2))
    only_green_in(here / "valid", range(0))
    weights = []
    real = train_with.__globals__["train"].train_one_epoch

    def spy(run, loader):
        weights.append(None if loader.dataset.weights is None else loader.dataset.weights.copy())
        return real(run, loader)

    monkeypatch.setattr("train.train_one_epoch", spy)
    train_with("--epochs 2 --image-weights --name a")
    settings = load_checkpoint("weights/last_a.pt")["settings"]
    ap = settings["class_map50"][0]
    assert settings["class_map50"][1] == 1.0  # valid has no green: not measured
    np.testing.assert_allclose(weights[0], [2.0] * 2 + [1.0] * 6)  # 1 / sqrt(2 / 8), 1 / sqrt(8 / 8)
    assert weights[1] is not None
    weights.clear()
    train_with("--epochs 1 --name b")
    assert weights == [None]
    assert "class_map50" not in load_checkpoint("weights/last_b.pt")["settings"]
    assert 0 <= ap <= 1


def test_badly_detected_classes_weigh_more(here):  # noqa: F811
    from utils.training.setup import Setup

    loader = create_loader("train", classes=2, img_size=64, batch_size=4, training=True, workers=0)
    data = SimpleNamespace(classes=2)
    setup = Setup(options=None, flags={}, run=None, loader=loader, valid=None, data=data, prepared=Preparation())
    only_red = loader.dataset.labels[0][:1]
    loader.dataset.labels = [only_red] * 4 + [row[1:] for row in loader.dataset.labels[4:]]
    setup.weigh_images(SimpleNamespace(per_class=[{"map50": 0.9, "targets": 5}, {"map50": 0.2, "targets": 5}]))
    np.testing.assert_allclose(loader.dataset.weights, [1.1 * 2**0.5] * 4 + [1.8 * 2**0.5] * 4)


def test_image_weights_resume_exactly(here, monkeypatch):  # noqa: F811
    only_green_in(here / "train", range(2))
    flags = "--epochs 3 --image-weights --adam --seed 2"
    train_with(f"{flags} --name whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, 6)
        train_with(f"{flags} --name cut")
    train_with("--resume --name cut --device cpu --workers 0", base="")
    whole, cut = load_checkpoint("weights/last_whole.pt"), load_checkpoint("weights/last_cut.pt")
    assert whole["settings"] == cut["settings"]
    for name, tensor in whole["model"].items():
        assert torch.equal(tensor, cut["model"][name]), name
    train_with("--epochs 3 --adam --seed 2 --name plain")
    plain = load_checkpoint("weights/last_plain.pt")
    assert any(not torch.equal(t, plain["model"][n]) for n, t in whole["model"].items())


@pytest.mark.slow
def test_image_weights_with_two_processes(here):  # noqa: F811
    only_green_in(here / "train", range(2))
    flags = "--batch-size 8 --epochs 2 --image-weights"
    train_with(f"{flags} --name one")
    train_in_two_processes(f"{flags} --name two")
    one, two = results("results_one.txt"), results("results_two.txt")
    np.testing.assert_allclose(two["total"], one["total"], rtol=1e-4)


# --- cls_weights ---


def head(classes: int) -> SimpleNamespace:
    definition = SimpleNamespace(iou_loss="ciou", ignore_thresh=1.0)
    return SimpleNamespace(
        anchors=torch.tensor([[8.0, 8.0]]), scale_x_y=1.0, classes=classes, new_coords=False, definition=definition
    )


def class_part(hyp: Hyp, counts: np.ndarray | None, label: int) -> float:
    """The class loss of one box of class `label` with all logits 0."""
    loss = DetectionLoss(SimpleNamespace(heads=[head(2)]), hyp)
    if counts is not None:
        loss.weigh_classes(counts)
    targets = torch.tensor([[0, label, 0.5, 0.5, 0.25, 0.25]])
    return loss([torch.zeros(1, 1, 4, 4, 7)], targets, (32, 32))[1]["cls"].item()


def test_cls_weights_multiply_the_class_loss_of_a_box():
    counts = np.array([90, 10])
    plain = class_part(Hyp(), None, 0)
    assert class_part(Hyp(), counts, 1) == pytest.approx(plain)
    weighted = [class_part(Hyp(cls_weights=1), counts, label) / plain for label in (0, 1)]
    assert weighted[1] / weighted[0] == pytest.approx(3)  # sqrt(90 / 10)
    assert 0.9 * weighted[0] + 0.1 * weighted[1] == pytest.approx(1)


def test_cls_weights_come_from_the_labels(here, capsys):  # noqa: F811
    only_green_in(here / "train", range(1))
    (here / "h.yaml").write_text("cls_weights: 1\n")
    train_with("--epochs 1 --batch-size 8 --notest --name plain")  # one step: what differs is the loss, not the network
    train_with("--epochs 1 --batch-size 8 --notest --name weighted --hyp h.yaml")
    plain, weighted = results("results_plain.txt"), results("results_weighted.txt")
    assert plain["box"] == weighted["box"]
    assert plain["cls"] != weighted["cls"]
    (here / "h.yaml").write_text("cls_weights: 1.5\n")
    with pytest.raises(UserError, match="cls_weights=1.5: must be a number, 0 to 1"):
        train_with("--epochs 1 --hyp h.yaml")


# --- background images ---


def test_background_pictures_train_and_are_counted(here, capsys):  # noqa: F811
    for number in range(4):
        (here / "train" / f"{number}.txt").unlink()
    for number in (4, 5):
        (here / "train" / f"{number}.txt").write_text("\n")
    (here / "valid" / "0.txt").unlink()
    (here / "h.txt").write_text(DULL)
    figures = train_with("--epochs 2 --batch-size 2 --hyp h.txt")  # some batches have no box at all
    output = capsys.readouterr().out
    assert "train: 8 images, 6 of them background (no boxes), 4 boxes" in output
    assert "valid: 4 images, 1 of them background (no boxes), 6 boxes" in output
    assert np.isfinite(results()["total"]).all()
    assert (figures["last"]["images"], figures["last"]["targets"]) == (4, 6)


def test_a_batch_without_boxes_has_a_loss_and_gradients():
    raw = torch.zeros(2, 1, 4, 4, 7, requires_grad=True)
    loss, parts = DetectionLoss(SimpleNamespace(heads=[head(2)]), Hyp())([raw], torch.zeros(0, 6), (32, 32))
    loss.backward()
    assert (parts["box"].item(), parts["cls"].item()) == (0, 0)
    assert parts["obj"].item() > 0
    assert torch.isfinite(raw.grad).all()
    assert (raw.grad[..., 4] > 0).all()  # every objectness is pushed down


# --- the quick checks ---


def test_training_says_what_the_quick_checks_find(here, capsys):  # noqa: F811
    (here / "tiny.cfg").write_text(CFG.replace("8,10, 20,16", "1,1, 2,2"))
    (here / "all.txt").write_text("".join(f"train/{i}.png\n" for i in range(8)) + "valid/0.png\n")
    (here / "d.data").write_text("classes=2\nnames=d.names\ntrain=all.txt\nvalid=valid.txt\n")
    (here / "valid.txt").write_text("".join(f"valid/{i}.png\n" for i in range(4)))
    only_green_in(here / "train", range(0))
    only_green_in(here / "valid", range(0))
    train_with("--epochs 1 --notest")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert len(lines) == 3
    assert "images of valid that are in train, too: 1 (first: valid/0.png)" in lines[0]
    assert "train: classes without boxes: 1 (first: green (1): 0 boxes)" in lines[1]
    assert "anchors with best possible recall 0.000" in lines[2]


def test_training_has_nothing_to_say_about_good_data(here, capsys):  # noqa: F811
    train_with("--epochs 1 --notest")
    assert "warning: " not in capsys.readouterr().out


def test_the_quick_checks_are_quick(here, capsys, monkeypatch):  # noqa: F811
    """They read no file: the images may be gone by then."""
    from utils.checking.checks import quick_warnings
    from utils.checking.findings import Subject
    from utils.data.data_file import read_data
    from utils.network.cfg import parse_cfg

    image = np.zeros((20, 900, 3), np.uint8)
    cv2.imwrite("train/strip.png", image)
    loader = create_loader("train", classes=2, img_size=SIZE, batch_size=4, training=True, workers=0)
    data = read_data("d.data")
    shutil.rmtree("train")
    lines = quick_warnings(Subject(data, defs=parse_cfg("tiny.cfg"), img_size=SIZE), {"train": loader.dataset})
    assert [line.split(":")[1] for line in lines] == [
        " images with a side under 32 pixels", " images over 10 times as long as wide"]  # fmt: skip
