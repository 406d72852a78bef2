"""DeepSpeed for Arctic: engine, launcher, optimizers and checkpoints. Importing this package imports no DeepSpeed."""

__version__ = "0.1.0"
