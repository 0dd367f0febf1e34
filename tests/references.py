"""What tests compare with that isn't part of the project: the folder of recorded references, beside the checkout or where
DARKEDGE_SHARED says, and OpenCV 4's reader of Darknet's files."""

import os
from pathlib import Path
from typing import Any

import cv2
import pytest

VARIABLE = "DARKEDGE_SHARED"
STATED = os.environ.get(VARIABLE, "")
READS_DARKNET = hasattr(cv2.dnn, "readNetFromDarknet")  # OpenCV 5 no longer does
FOLDER = Path(STATED or Path(__file__).resolve().parents[2] / "shared")


def reference(name: str = "") -> Path:
    """A file or folder of the references. A test that wants what isn't there is skipped by name; it fails where the
    environment says that the folder is there."""
    path = FOLDER / name
    if not path.exists():
        if STATED:
            pytest.fail(f"{path} is not there, but {VARIABLE} says that the references are", pytrace=False)
        pytest.skip(f"{path} is not there")
    return path


def read_darknet(*files: Any) -> "cv2.dnn.Net":
    """OpenCV's network of a .cfg and .weights, named or as bytes. A test that wants it is skipped by name with OpenCV 5."""
    if not READS_DARKNET:
        pytest.skip(f"OpenCV {cv2.__version__} doesn't read Darknet's files")
    return cv2.dnn.readNetFromDarknet(*files)
