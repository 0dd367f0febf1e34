"""The face of utils/pruning/graph.py: `ChannelGraph(defs)`."""

from utils.pruning.graph import ChannelGraph as ChannelGraph
