"""What lies in a folder that export.py --target ncnn writes."""

from utils.export.onnx.header import METADATA_FILE

PARAM, BIN = "model.ncnn.param", "model.ncnn.bin"  # layers as text, and their weights
OWN_FILES = (PARAM, BIN, METADATA_FILE)
