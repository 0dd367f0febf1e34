"""The size of an exported network's input, the same for every format."""

from utils.core.errors import UserError
from utils.loading import Loaded
from utils.network.shapes import check_img_size


def input_size(wanted: list[list[int]] | None, loaded: Loaded) -> tuple[int, int]:
    """(height, width) of the network's input: `wanted` by --img-size, or what the network was trained with.

    Raises UserError for more than two numbers, and for sides that don't fit the network's stride.
    """
    sides = [side for part in wanted or [[loaded.img_size]] for side in part]
    if len(sides) > 2:
        raise UserError(f"--img-size: give one side or height and width, not {len(sides)} numbers")
    for side in sides:
        check_img_size(side, loaded.model.max_stride)
    return sides[0], sides[-1]
