"""All that a resume needs and that is not in the engine: where training stands, and the random numbers of each rank."""

from __future__ import annotations

import random
from typing import Any

import attrs

Metrics = dict[str, Any]
"""One record of figures, as one line of ``metrics.jsonl``."""


@attrs.define
class TrainState:
    """Where training stands. The same on every rank.

    ``step`` counts optimizer steps taken, ``epoch`` starts at 0, ``step_in_epoch`` counts steps taken of this epoch.
    ``position`` is what the dataloader told of where the next step begins in this epoch; empty at its beginning.
    """

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    position: dict[str, Any] = attrs.field(factory=dict)
    tokens: int = 0
    trained_tokens: int = 0
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return attrs.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainState:
        """What ``as_dict`` gave; entries that a later version added are left out."""
        names = {field.name for field in attrs.fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in names})


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch on every device of this process."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """The state of this rank's random numbers, of tensors and plain values only."""
    import numpy as np
    import torch

    name, keys, *rest = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """Go on with the random numbers that ``random_state`` took."""
    import numpy as np
    import torch

    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
