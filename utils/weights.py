"""The face of utils/network/weights.py: `load_weights(model, path)` and `save_weights(model, path)`."""

from utils.network.weights import load_weights as load_weights
from utils.network.weights import save_weights as save_weights
