"""The recipe's ``focal`` section."""

from __future__ import annotations

from arctic_training import Config, key


class FocalConfig(Config):
    gamma: float = key(
        2.0, ge=0, le=10, doc="How much the tokens that are predicted well already count less; 0 is cross entropy."
    )
    entropy_weight: float = key(
        0.0, ge=0, doc="Reward for undecided predictions, in nats of loss a nat of entropy. Works with every trainer."
    )
