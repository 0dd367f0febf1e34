"""Black images with coloured rectangles, and a detector made by hand whose boxes are known exactly."""

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import torch

from tests.tiny import NET
from utils.network.darknet import Darknet

RED, GREEN, BLUE = (0, 0, 255), (0, 255, 0), (255, 0, 0)  # BGR
CELLS = (
    NET + "[convolutional]\nfilters=7\nsize=16\nstride=16\nactivation=linear\n"
    + "[yolo]\nmask=0\nanchors=16,16\nclasses=2\nnum=1\n"
)  # fmt: skip


@torch.no_grad()
def cells(cfg: str = CELLS) -> Darknet:
    """Sees an object in each bright cell of 16x16 pixels, as large as the cell, in its middle; red makes it class 0, blue
    class 1."""
    model = Darknet(cfg, 64).eval()
    convolution = model.module_list[0].conv
    convolution.weight.zero_()
    convolution.bias.fill_(-10)
    convolution.bias[:4] = 0
    convolution.weight[4] = 40 / 256  # objectness: logit 40 * (sum of the channels' means) - 10
    convolution.weight[5, 0] = convolution.weight[6, -1] = 20 / 256
    return model


def write_rectangles(folder: Path, colours: dict[str, tuple[int, int, int]], pictures: Iterable[tuple]) -> Path:
    """x.data, whose classes are the names of `colours`, and whose valid= images are 100.png, 101.png, ...

    Each of `pictures` is (height, width) and for each class where its rectangle is, as x1 y1 x2 y2 in pixels, or None.
    """
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    for number, ((height, width), *rectangles) in enumerate(pictures, 100):
        image, lines = np.zeros((height, width, 3), np.uint8), []
        for label, (rectangle, colour) in enumerate(zip(rectangles, colours.values(), strict=True)):
            if rectangle is not None:
                x1, y1, x2, y2 = rectangle
                image[y1:y2, x1:x2] = colour
                values = (x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height
                lines.append(f"{label} " + " ".join(f"{v:.6f}" for v in values))
        cv2.imwrite(str(folder / "images" / f"{number}.png"), image)
        (folder / "labels" / f"{number}.txt").write_text("\n".join(lines) + "\n")
    (folder / "x.names").write_text("\n".join(colours))
    path = folder / "x.data"
    path.write_text(f"classes={len(colours)}\nnames={folder}/x.names\nvalid={folder}/images\n")
    return path
