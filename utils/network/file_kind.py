"""What a file of weights is, by its first bytes: never by its suffix."""

import struct
from pathlib import Path

from utils.core.errors import UserError


class NoCfgError(UserError):
    """Weights that don't say which network they belong to, where no cfg was named with `flag` either."""

    def __init__(self, path: str | Path, flag: str = "--cfg") -> None:
        super().__init__(f"carries no cfg; name the one it belongs to with {flag}", place=path)
        self.path = path


def is_checkpoint(path: str | Path) -> bool:
    """Whether the file is a PyTorch checkpoint (a zip archive, or the pickle of old versions), or any other pickle."""
    return first_bytes(path)[:2] in (b"PK", *(bytes((0x80, protocol)) for protocol in range(2, 6)))


def is_weights(path: str | Path) -> bool:
    """Whether the file begins like Darknet weights: three small version numbers."""
    head = first_bytes(path)
    return len(head) >= 16 and all(0 <= v < 1000 for v in struct.unpack("<3i", head[:12]))


def is_onnx(path: str | Path) -> bool:
    """Whether the file begins like an ONNX model: protobuf's field 1, a small version number, then another field."""
    head = first_bytes(path)
    return len(head) >= 3 and head[0] == 0x08 and 3 <= head[1] < 32 and head[2] in (0x12, 0x1A, 0x3A, 0x42)


def first_bytes(path: str | Path) -> bytes:
    """The first 20 bytes, or fewer; UserError for a file that is not there, can't be read or is empty."""
    try:
        with open(path, "rb") as file:
            head = file.read(20)
    except FileNotFoundError:
        raise UserError.at(path, "these weights do not exist; check the path") from None
    except OSError as error:
        raise UserError.at(path, f"cannot be read ({error.strerror})") from None
    if not head:
        raise UserError.at(path, "is empty; get the file again")
    return head
