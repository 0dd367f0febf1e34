"""The layers that detect: the anchor-free head against its formula in NumPy, and what all kinds have in common."""

import re

import numpy as np
import pytest
import torch

from tests.tiny import DFL, NET, conv, dfl_head, network
from utils.core.errors import UserError
from utils.network import definitions
from utils.network.cfg import parse_cfg, write_cfg
from utils.network.darknet import Darknet
from utils.network.heads import DflHead, YoloHead
from utils.network.shapes import output_shapes
from utils.network.weights import load_weights, save_weights
from utils.pruning.graph import ChannelGraph


def decoded_by_hand(raw: np.ndarray, reg_max: int, stride: int) -> np.ndarray:
    """(1, ny, nx, 4 * reg_max + classes) -> (ny * nx, 5 + classes), cell by cell and side by side."""
    _, ny, nx, _ = raw.shape
    rows = []
    for y in range(ny):
        for x in range(nx):
            values, sides = raw[0, y, x], []
            for k in range(4):
                e = np.exp(values[k * reg_max : (k + 1) * reg_max])
                sides.append(float((e / e.sum() * np.arange(reg_max)).sum()))
            left, top, right, bottom = sides
            x1, y1, x2, y2 = (x + 0.5 - left), (y + 0.5 - top), (x + 0.5 + right), (y + 0.5 + bottom)
            box = np.array([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]) * stride
            rows.append([*box, 1.0, *(1 / (1 + np.exp(-values[4 * reg_max :])))])
    return np.array(rows)


@pytest.mark.parametrize("size", [64, (32, 96)])
def test_a_network_decodes_as_the_formula_says(size):
    model = network(DFL).double()
    height, width = (size, size) if isinstance(size, int) else size
    decoded, raws = model(torch.rand(1, 3, height, width, dtype=torch.float64))
    assert [r.shape for r in raws] == [(1, 1, height // s, width // s, 26) for s in (2, 4)]
    wanted = np.concatenate([decoded_by_hand(r[0].detach().numpy(), 6, s) for r, s in zip(raws, (2, 4), strict=True)])
    np.testing.assert_allclose(decoded[0].detach().numpy(), wanted, rtol=1e-12)
    assert wanted[:, 2:4].std() > 0.5


def test_raw_values_are_the_channels_of_the_map_that_it_reads():
    head = DflHead(definitions.Dfl(classes=3, reg_max=2))
    x = torch.arange(11 * 6.0).view(1, 11, 2, 3)
    raw = head(x)
    assert raw.shape == (1, 1, 2, 3, 11)
    assert raw[0, 0, 1, 2].tolist() == x[0, :, 1, 2].tolist()


def test_training_begins_with_flat_distributions_and_few_objects():
    model = Darknet(NET + conv(8, stride=8) + dfl_head(0, 1, reg_max=16, classes=3), 64)
    box, scores = (model.module_list[i].conv.bias.tolist() for i in (3, 6))
    assert box == [1.0] * 64
    assert scores == pytest.approx([np.log(5 / 3 / 80**2)] * 3)


def test_one_convolution_may_make_the_whole_map():
    model = Darknet(NET + conv(8, stride=8) + conv(4 * 16 + 5, 1, bn=0, activation="linear") + "[dfl]\nclasses=5\n", 64)
    assert model.head_convolutions() == [(1, 2)]
    assert model.module_list[1].conv.bias.tolist() == pytest.approx([1.0] * 64 + [np.log(5 / 5 / 80**2)] * 5)


def test_what_comes_between_head_and_convolutions():
    direct = conv(8) + conv(30, 1, bn=0, activation="linear")
    one, end = "[route]\nlayers=-1\n", "[dfl]\nclasses=6\nreg_max=6\n"
    branches = conv(20, 1, bn=0) + "[route]\nlayers=0\n" + conv(10, 1, bn=0)

    def feeding(text: str) -> list[int]:
        defs = parse_cfg(NET + text)
        return defs.feeding(len(defs) - 1)

    assert feeding(direct + end) == [1]
    assert feeding(direct + one * 2000 + end) == [1]
    assert feeding(conv(8) + branches + "[route]\nlayers=1\n[route]\nlayers=-1,3\n" + end) == [1, 3]
    assert feeding(direct + "[dropout]\n" + end) == []
    assert feeding(conv(60, 1) + "[route]\nlayers=-1\ngroups=2\n" + end) == []
    assert feeding(conv(1, 1) + "[route]\nlayers=-1,-1\n" * 200 + end) == []  # 2 to the 200 channels
    assert feeding(end) == []  # the image


def test_what_the_head_reads_is_frozen_and_the_rest_is_not():
    graph = ChannelGraph(parse_cfg(DFL))
    assert graph.frozen[graph.out[20]].all()
    assert len(graph.out[20]) == 26
    assert not any(graph.frozen[graph.out[i]].any() for i in (0, 1, 7, 13, 15, 18, 23, 25, 28))
    (parts,) = graph.equal_parts  # the halves of the C2f block
    assert np.array_equal(np.concatenate(parts), graph.out[1])


def test_bf16_copy_keeps_both_branches_and_decoding_in_float32():
    model = network(DFL)
    image = torch.rand(1, 3, 64, 64)
    copy = model.inference_copy(torch.device("cpu"), "bf16")
    decoded, raws = copy(image.bfloat16())
    assert decoded.dtype == raws[0].dtype == torch.float32
    assert [copy.module_list[i].float_input for i in (15, 16, 18, 19, 26, 29)] == [False, True, False, True, True, True]
    wanted = model(image)[0]
    assert (decoded[..., :4] - wanted[..., :4]).abs().max() < 0.4  # pixels


def test_weights_of_another_number_of_classes_leave_only_the_class_branch_new(tmp_path):
    save_weights(network(DFL), tmp_path / "two.weights")
    five = NET + DFL[len(NET) :].replace("classes=2", "classes=5").replace("filters=2\n", "filters=5\n")
    with pytest.raises(UserError, match="for 2 classes, this cfg has another number"):
        load_weights(Darknet(five, 64), tmp_path / "two.weights", prefix=False)
    model = Darknet(five, 64)
    before = model.module_list[19].conv.weight.clone()
    report = load_weights(model, tmp_path / "two.weights", pretrained=True)
    assert report.skipped_layers == [19, 29]
    assert "2 classes" in report.message
    assert torch.equal(model.module_list[19].conv.weight, before)
    for index in (13, 16, 18, 26):
        assert torch.equal(model.module_list[index].conv.weight, network(DFL).module_list[index].conv.weight)


def test_the_text_is_read_and_written():
    defs = parse_cfg(DFL)
    assert parse_cfg(write_cfg(defs)) == defs
    assert [(defs[i].kind, defs[i].classes, defs[i].reg_max) for i in defs.head_indices()] == [("dfl", 2, 6)] * 2
    assert parse_cfg(NET + "[dfl]\n").layers[0].reg_max == 16


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [("reg_max=6", "reg_max=5", r"cfg:\d+: layer 21 \[dfl\]: has reg_max=5 and classes=2, so .* 22 channels .*, not 26"),
     ("classes=2", "classes=3", r"layer 21 \[dfl\]: has reg_max=6 and classes=3, so the map before it needs 27 channels"),
     ("reg_max=6", "reg_max=1", r"layer 21 \[dfl\]: reg_max=1: must be at least 2"),
     ("reg_max=6", "reg_max=x", r"cfg:\d+: layer 21 \[dfl\]: reg_max=x: not a value of type int"),
     ("[route]\nlayers=13\n[conv", "[conv", r"layer 22 \[convolutional\]: reads layer 21, a \[dfl\], whose output is boxes")],
)  # fmt: skip
def test_mistakes_name_the_layer(old, new, said):
    place = DFL.index(old, DFL.index("[dfl]") if old.startswith("[route]") else 0)
    text = DFL[:place] + new + DFL[place + len(old) :]
    with pytest.raises(UserError, match=said) as error:
        output_shapes(parse_cfg(text))
    assert "\n" not in str(error.value)


def test_a_network_without_head_says_which_there_are():
    with pytest.raises(UserError, match=re.escape("has no [yolo] or [dfl] layer")):
        Darknet(NET + conv(4), 64).eval()(torch.rand(1, 3, 64, 64))


def test_both_kinds_in_one_network_run():
    yolo = conv(14, 1, bn=0, activation="linear") + "[yolo]\nmask=0,1\nanchors=8,10, 20,16\nclasses=2\nnum=2\n"
    model = network(NET + conv(8, stride=8) + yolo + dfl_head(0, 3))
    assert [type(h) for h in model.heads] == [YoloHead, DflHead]
    decoded, raws = model(torch.rand(1, 3, 64, 64))
    assert decoded.shape == (1, 2 * 64 + 64, 7)
    assert [r.shape for r in raws] == [(1, 2, 8, 8, 7), (1, 1, 8, 8, 26)]
