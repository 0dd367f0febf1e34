"""Quantization: one rounding, one fake quantizer, layers that compose it, and the strategies that configure it."""
