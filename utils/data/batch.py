"""Batches of images, and how they come from the processes that read them."""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

Size = tuple[int, int]  # height, width


@dataclass
class ImageInfo:
    """Where a letterboxed image came from: x_network = x_original * ratio[0] + pad[0], and y likewise.

    `index` counts in the dataset, `shape` is the original's (height, width). Under augmentation there is no such map:
    ratio and pad are then (1, 1) and (0, 0).
    """

    path: Path
    index: int
    shape: Size
    ratio: tuple[float, float]
    pad: tuple[int, int]


@dataclass
class Batch:
    """`images`: uint8 (batch, 3, height, width) RGB, or 1 channel, in channels_last order.

    `targets`: float32 (boxes, 6): image in the batch, class, cx, cy, w, h normalised to the network's input.
    `piped`: whether it came through a pipe from another process, as there was no room for it in shared memory.
    """

    images: torch.Tensor
    targets: torch.Tensor
    infos: list[ImageInfo]
    piped: bool = False

    def pin_memory(self) -> "Batch":
        self.images, self.targets = self.images.pin_memory(), self.targets.pin_memory()
        return self

    def __getstate__(self) -> dict[str, Any]:
        """What another process gets: the images by name, where they lie in shared memory, all else by value."""
        state = self.__dict__ | {"targets": self.targets.numpy()}
        if self.piped:
            state["images"] = self.images.permute(0, 2, 3, 1).numpy()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"targets": torch.from_numpy(state["targets"])}
        if self.piped:
            self.images = torch.from_numpy(state["images"]).permute(0, 3, 1, 2)


Sample = tuple[np.ndarray, np.ndarray, ImageInfo]  # image (h, w, channels) RGB, labels (n, 5), info


def collate(samples: list[Sample]) -> Batch:
    """Stack samples of one size. The images stay (batch, h, w, channels) in memory: torch's channels_last.

    A worker process puts them into shared memory here: were it left to the queue, whose thread does so later, a full one
    would cost the batch without a word, and the main process would wait for it for ever.
    """
    images = torch.from_numpy(np.stack([image for image, _, _ in samples])).permute(0, 3, 1, 2)
    rows = [np.insert(labels, 0, number, axis=1) for number, (_, labels, _) in enumerate(samples)]
    targets = torch.from_numpy(np.concatenate(rows).astype(np.float32))
    batch = Batch(images, targets, [info for _, _, info in samples], piped=get_worker_info() is not None)
    if batch.piped:
        with contextlib.suppress(RuntimeError):  # no room
            images.share_memory_()
            batch.piped = False
    return batch


def normalise(images: Tensor, device: torch.device, dtype: torch.dtype = torch.float32, maxabs: bool = False) -> Tensor:
    """uint8 images (batch, channels, height, width) -> 0..1, or with `maxabs` -1..1, on `device` in channels_last."""
    images = images.to(device, non_blocking=True)
    if maxabs:  # in float32 first: a bfloat16 between 1 and 2 has no room for 128 levels after the subtraction
        return (images.float() / 127.5 - 1).to(dtype, memory_format=torch.channels_last)
    return images.to(dtype, memory_format=torch.channels_last).div_(255)
