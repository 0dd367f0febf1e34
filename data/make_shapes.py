"""Draw a small detection dataset, so that everything can be tried without a download.

    python data/make_shapes.py [--out data/shapes --images 300 --size 320 --seed 0]

Circles, squares, triangles and stars of many sizes, colours and angles on textured backgrounds, in front of one another.
The same arguments always draw the same files, from one Generator per image.
"""

import math
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # to be run as a script, too
from utils.core.files import make_folder, write_text
from utils.core.ranges import SEED, whole
from utils.data.images import write_picture
from utils.scripts.cli import Parser, run

NAMES = ("circle", "square", "triangle", "star")
MIN_VISIBLE = 0.3  # an object of which less can be seen has no label
MIN_SIDE = 6  # pixels of the visible part
VALID_SHARE = 0.2
MIN_CONTRAST = 90.0  # distance from the background in BGR
_SHIFT = 4  # OpenCV draws polygons with 4 fractional bits


def get_parser() -> ArgumentParser:
    """The command line."""
    parser = Parser(description="Draw the embedded dataset of coloured shapes")
    parser.add_argument("--out", type=Path, default=Path("data/shapes"), help="folder to write")
    parser.add_argument("--images", type=whole(5, 1_000_000), default=300, help="how many, a fifth of them for validation")
    parser.add_argument("--size", type=whole(64, 8192), default=320, help="side of an image in pixels")
    parser.add_argument("--seed", type=SEED, default=0, help="another seed, another dataset")
    parser.add_argument("--force", action="store_true", help="redraw images that are there already")
    return parser


def main(args: Namespace) -> Path:
    """Draw what is missing; returns the path of shapes.data."""
    files = _small_files(args.images, args.size, args.seed)
    data = args.out / "shapes.data"
    if not args.force and _is_whole(args.out, files, args.images):
        print(f"{data}: {args.images} images are there already")
        return data
    for folder in ("images", "labels"):
        make_folder(args.out / folder)
    boxes = 0
    for number in tqdm(range(args.images), desc=f"Drawing {args.out}", mininterval=0.5):
        image, labels = draw_picture(args.size, np.random.default_rng((args.seed, number)))
        _write_picture(args.out, number, image, labels)
        boxes += len(labels)
    for name, text in files.items():  # shapes.data comes last and stands for the whole
        write_text(args.out / name, text)
    print(f"{data}: {args.images} images, {boxes} boxes of {len(NAMES)} classes")
    return data


def _small_files(images: int, size: int, seed: int) -> dict[str, str]:
    valid = max(round(images * VALID_SHARE), 1)
    lines = [f"images/{_stem(i)}.jpg\n" for i in range(images)]
    return {
        "shapes.names": "".join(f"{name}\n" for name in NAMES),
        "train.txt": "".join(lines[:-valid]),
        "valid.txt": "".join(lines[-valid:]),
        "shapes.data": f"# data/make_shapes.py --images {images} --size {size} --seed {seed}\n"
        f"classes={len(NAMES)}\ntrain=train.txt\nvalid=valid.txt\nnames=shapes.names\n",
    }


def _is_whole(out: Path, files: dict[str, str], images: int) -> bool:
    """Are all files of these very arguments there?"""
    if not all((out / name).is_file() and (out / name).read_text() == text for name, text in files.items()):
        return False
    kinds = (("images", "jpg"), ("labels", "txt"))
    return all((out / folder / f"{_stem(i)}.{suffix}").is_file() for i in range(images) for folder, suffix in kinds)


def _stem(number: int) -> str:
    return f"shapes_{number:05d}"


def _write_picture(out: Path, number: int, image: np.ndarray, labels: np.ndarray) -> None:
    write_picture(out / "images" / f"{_stem(number)}.jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90])
    rows = (f"{int(row[0])} " + " ".join(f"{value:.6f}" for value in row[1:]) for row in labels)
    write_text(out / "labels" / f"{_stem(number)}.txt", "".join(f"{row}\n" for row in rows))


def draw_picture(size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One picture: image (size, size, 3) uint8 BGR, labels (n, 5) class, cx, cy, w, h normalised to 0..1.

    A box encloses what can be seen of its object. Objects of which less than MIN_VISIBLE can be seen have none.
    """
    image = background(size, rng)
    owner = np.full((size, size), -1)  # number of the object that is seen at each pixel
    classes, areas = [], []
    for number in range(rng.integers(2, 8)):
        kind = int(rng.integers(len(NAMES)))
        polygon = _place(outline(NAMES[kind], rng), owner, rng)
        classes.append(kind)
        areas.append(cv2.contourArea(polygon.astype(np.float32)))
        mask = _fill(polygon, size)
        image = _paint(image, mask, rng)
        owner[mask > 127] = number
    image = image + rng.normal(0, rng.uniform(1, 6), image.shape)
    image = cv2.GaussianBlur(image.clip(0, 255).astype(np.uint8), (0, 0), rng.uniform(0.3, 0.9))
    rows = [_label(owner == n, kind, area) for n, (kind, area) in enumerate(zip(classes, areas, strict=True))]
    return image, np.array([row for row in rows if row]).reshape(-1, 5)


def _label(visible: np.ndarray, kind: int, area: float) -> tuple[float, ...] | None:
    """The label of an object that is seen where `visible` and whose whole outline encloses `area` pixels."""
    ys, xs = np.flatnonzero(visible.any(1)), np.flatnonzero(visible.any(0))
    if not len(ys) or visible.sum() < MIN_VISIBLE * area:
        return None
    top, bottom, left, right = ys[0], ys[-1] + 1, xs[0], xs[-1] + 1
    if min(bottom - top, right - left) < MIN_SIDE:
        return None
    size = len(visible)
    return kind, (left + right) / 2 / size, (top + bottom) / 2 / size, (right - left) / size, (bottom - top) / size


def outline(name: str, rng: np.random.Generator) -> np.ndarray:
    """(n, 2) points of a shape around (0, 0) with a circumscribed circle of radius 1 before it is squeezed and turned."""
    if name == "star":
        angles, radii = np.arange(10) * math.pi / 5, np.where(np.arange(10) % 2, rng.uniform(0.38, 0.5), 1.0)
    else:
        corners = {"circle": 48, "square": 4, "triangle": 3}[name]
        angles, radii = np.arange(corners) * 2 * math.pi / corners, np.ones(corners)
    angles = angles + rng.uniform(0, 2 * math.pi)
    points = np.stack([np.cos(angles), np.sin(angles)], 1) * radii[:, None]
    squeeze = 1.0 if name == "square" else rng.uniform(0.75, 1.0)  # a square stays a square, a circle may lean
    return points * (1.0, squeeze)


def _place(points: np.ndarray, owner: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Scale and move an outline into the image, to a place where it hides not too much of the others."""
    size = len(owner)
    radius = size * math.exp(rng.uniform(math.log(0.035), math.log(0.22)))
    for _ in range(8):
        placed = points * radius + rng.uniform(0.3 * radius, size - 0.3 * radius, 2)
        under = owner[_fill(placed, size) > 127]
        if np.mean(under >= 0) < rng.uniform(0, 0.6):
            break
    return placed


def _fill(polygon: np.ndarray, size: int) -> np.ndarray:
    """(size, size) uint8 coverage of a polygon, with smooth edges."""
    mask = np.zeros((size, size), np.uint8)
    # OpenCV's pixel n has its centre at n, ours at n + 0.5
    points = np.round((polygon - 0.5) * (1 << _SHIFT)).astype(np.int32)
    cv2.fillPoly(mask, [points], 255, cv2.LINE_AA, _SHIFT)
    return mask


def _paint(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blend a coloured, shaded object into a float image where the mask says so."""
    inside = mask > 127
    around = image[inside].mean(0) if inside.any() else image.mean((0, 1))
    for _ in range(50):
        colour = rng.uniform(0, 255, 3)
        if np.linalg.norm(colour - around) >= MIN_CONTRAST:
            break
    size = len(mask)
    shade = colour + 25 * _ramp(size, rng)[..., None]
    if rng.random() < 0.3:
        shade = shade + 20 * _stripes(size, rng)[..., None]
    alpha = (mask / 255.0)[..., None]
    return image * (1 - alpha) + shade.clip(0, 255) * alpha


def background(size: int, rng: np.random.Generator) -> np.ndarray:
    """(size, size, 3) float BGR: a base colour, a large texture and a fine one."""
    textures = (_ramp, _stripes, _checker, _blotches, _noise)
    image = np.full((size, size, 3), rng.uniform(40, 215, 3))
    for amplitude in (rng.uniform(20, 45), rng.uniform(5, 20)):
        texture = textures[rng.integers(len(textures))](size, rng)
        image = image + amplitude * texture[..., None] * rng.uniform(0.3, 1, 3)
    return image.clip(0, 255)


def _ramp(size: int, rng: np.random.Generator) -> np.ndarray:
    """From -1 to 1 in a random direction."""
    phase = _phase(size, rng)
    return 2 * (phase - phase.min()) / np.ptp(phase) - 1


def _stripes(size: int, rng: np.random.Generator) -> np.ndarray:
    return np.sin(_phase(size, rng) * 2 * math.pi / rng.uniform(6, 40))


def _checker(size: int, rng: np.random.Generator) -> np.ndarray:
    ys, xs = np.mgrid[:size, :size] // int(rng.integers(8, 40))
    return (ys + xs) % 2 * 2.0 - 1


def _blotches(size: int, rng: np.random.Generator) -> np.ndarray:
    """Noise of several octaves, each finer one half as strong."""
    octaves = (4, 8, 16, 32)
    layers = [cv2.resize(rng.uniform(-1, 1, (n, n)), (size, size), interpolation=cv2.INTER_CUBIC) / 2**k
              for k, n in enumerate(octaves)]  # fmt: skip
    return np.sum(layers, 0)


def _noise(size: int, rng: np.random.Generator) -> np.ndarray:
    return rng.normal(0, 0.5, (size, size))


def _phase(size: int, rng: np.random.Generator) -> np.ndarray:
    """Distance in pixels along a random direction."""
    angle = rng.uniform(0, 2 * math.pi)
    ys, xs = np.mgrid[:size, :size]
    return xs * math.cos(angle) + ys * math.sin(angle)


if __name__ == "__main__":
    run(main, get_parser())
