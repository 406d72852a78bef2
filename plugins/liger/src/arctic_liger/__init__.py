"""Liger's fused kernels for Arctic: `model.liger: true`, or `model.type: liger`."""
