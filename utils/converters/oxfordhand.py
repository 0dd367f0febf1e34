"""The Oxford hand dataset's .mat files, one an image (Mittal et al. 2011, "Hand detection using multiple proposals")."""

import zlib
from pathlib import Path

import numpy as np

from utils.converters.base import Annotations, Found, Options, published_names
from utils.converters.tree import read_paired
from utils.core.errors import UserError

NAME = "oxfordhand"
_CORNERS = ("a", "b", "c", "d")


def read_oxfordhand(source: Path, options: Options) -> Annotations:
    """{training,validation,test}_dataset/{training,validation,test}_data/ with images/ and annotations/*.mat.

    Raises UserError when there is no annotation, and without SciPy, which reads them.
    """
    try:
        import scipy.io  # noqa: F401
    except ImportError:
        raise UserError("oxfordhand's .mat files are read by SciPy, which isn't installed: pip install scipy") from None
    return read_paired(source, options, ".mat", published_names(NAME))


def parse_oxfordhand(note: str, options: Options) -> Found:
    """The upright box around each hand's rotated one, whose corners are (y, x), counted from 1.

    Raises UserError for a file that isn't MATLAB's, or has no cell array `boxes` of structs with corners a, b, c, d.
    """
    from scipy.io.matlab import MatReadError, loadmat

    found, name = Found(f"{note}: hand "), published_names(NAME)[0]
    try:
        cells = np.ravel(loadmat(note)["boxes"])
    except KeyError:
        raise UserError(f"{note}: has no `boxes`, so it is no annotation of the Oxford hand dataset; remove it") from None
    except (MatReadError, NotImplementedError, OSError, TypeError, ValueError, zlib.error) as error:
        raise UserError(f"{note}: not a MATLAB file that SciPy can read ({error}); copy it again") from None
    for number, cell in enumerate(cells, 1):
        try:
            box = np.ravel(cell)[0]
            corners = np.array([np.ravel(box[corner])[:2] for corner in _CORNERS], np.float64) - 1
            (top, left), (bottom, right) = corners.min(0), corners.max(0)
        except (IndexError, KeyError, TypeError, ValueError):
            raise UserError(f"{found.where(number)}: has no corners a, b, c, d of (y, x); mend or remove this file") from None
        found.add(name, number, (left, top, right, bottom))
    return found
