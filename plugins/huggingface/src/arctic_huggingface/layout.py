"""What the state of a model consists of: names, shapes, precisions, and which tensors are one and the same.

It is written beside a checkpoint's weights, so that they can be held to it where there is no model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import attrs

from arctic_training.adapters import kept_state
from arctic_training.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

    import torch


class Entry(NamedTuple):
    """Shape and precision of one tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@attrs.frozen
class Layout:
    """The entries of a model's state by name, and the precision of most of them.

    ``tied`` are names of tensors that are written under another name; transformers ties them when it loads.
    """

    entries: Mapping[str, Entry]
    tied: frozenset[str]
    dtype: torch.dtype

    @classmethod
    def of(cls, model: Any) -> Layout:
        """The layout of a model, also of one whose parameters ZeRO-3 has partitioned; of a model that trains an adapter
        without its base."""
        state = kept_state(model, keep_vars=True)
        names = getattr(model, "all_tied_weights_keys", None) or {}
        tied = {name for name, other in names.items() if name in state and state[name] is state.get(other)}
        # The shape of a partitioned parameter is empty; its own is kept beside it.
        entries = {
            name: Entry(tuple(getattr(tensor, "ds_shape", tensor.shape)), tensor.dtype)
            for name, tensor in state.items()
        }
        return cls(entries, frozenset(tied), model.dtype)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each entry by name."""
        return {name: entry.shape for name, entry in self.entries.items()}

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        content = {
            "dtype": _word(self.dtype),
            "tied": sorted(self.tied),
            "tensors": {name: [list(entry.shape), _word(entry.dtype)] for name, entry in self.entries.items()},
        }
        path.write_text(json.dumps(content, indent=1))

    @classmethod
    def read(cls, path: Path) -> Layout:
        """Read what ``write`` wrote.

        Raises:
            CheckpointError: there is no such file, or another content.
        """
        import torch

        try:
            content = json.loads(path.read_text())
            entries = {
                name: Entry(tuple(shape), getattr(torch, dtype)) for name, (shape, dtype) in content["tensors"].items()
            }
            return cls(entries, frozenset(content["tied"]), getattr(torch, content["dtype"]))
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(
                f"the description of the model cannot be read: {error}",
                where=str(path),
                remedy="choose another checkpoint",
            ) from error


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
