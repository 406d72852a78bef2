"""From a model's tensors to those of its published checkpoints, which differ where transformers joins or divides them
in memory, such as the experts of a layer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from arctic_huggingface.layout import Layout

Tensors = dict[str, "torch.Tensor"]
_LAYER = re.compile(r".*?\.\d+\.")


class PublishedNames:
    """Converts tensors as they come. Those that can only be converted together are held back until all are there.

    Which these are is found out by converting tensors without content.

    Args:
        model: a model of transformers, with or without content; None leaves every tensor as it is.
        layout: what its state consists of.
    """

    def __init__(self, model: Any, layout: Layout) -> None:
        import torch

        self.model = model
        self.group_of: dict[str, str] = {}
        self.waiting: dict[str, Tensors] = {}
        self.lacking: dict[str, set[str]] = {}
        if model is None:
            return
        empty = {
            name: torch.empty(entry.shape, dtype=entry.dtype, device="meta")
            for name, entry in layout.entries.items()
            if name not in layout.tied
        }
        together = self._shapes(empty)
        partners = {name for name in empty if not _agrees(self._shapes({name: empty[name]}), together)}
        for group_of in (_layer, lambda name: ""):  # partners are in one layer, or may be anywhere
            self.group_of = {name: group_of(name) for name in partners}
            groups = {group: {n for n in partners if self.group_of[n] == group} for group in self.group_of.values()}
            if all(_agrees(self._shapes({name: empty[name] for name in group}), together) for group in groups.values()):
                break
        self.lacking = groups

    def give(self, name: str, tensor: torch.Tensor) -> Tensors:
        """The published tensors that this one completes, each with a storage of its own."""
        group = self.group_of.get(name)
        if group is None:
            return self._converted({name: tensor})
        self.waiting.setdefault(group, {})[name] = tensor
        self.lacking[group].discard(name)
        return {} if self.lacking[group] else self._converted(self.waiting.pop(group))

    def rest(self) -> Tensors:
        """What is left of groups of which a part was never given."""
        left = {name: tensor for tensors in self.waiting.values() for name, tensor in tensors.items()}
        self.waiting = {}
        return self._converted(left) if left else {}

    def _converted(self, tensors: Tensors) -> Tensors:
        return {
            name: tensor.contiguous() if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
            for name, tensor in self._reverted(tensors).items()
        }

    def _shapes(self, tensors: Tensors) -> dict[str, Any]:
        return {name: tensor.shape for name, tensor in self._reverted(tensors).items()}

    def _reverted(self, tensors: Tensors) -> Tensors:
        if self.model is None:
            return tensors
        from transformers.core_model_loading import revert_weight_conversion

        return revert_weight_conversion(self.model, tensors)


class ChosenNames:
    """Gives some tensors new names, and leaves out all others: those of an adapter.

    Args:
        names: from their names in the model's state.
    """

    def __init__(self, names: Mapping[str, str]) -> None:
        self.names = names

    def give(self, name: str, tensor: torch.Tensor) -> Tensors:
        """The tensor under its published name, or nothing."""
        return {self.names[name]: tensor} if name in self.names else {}

    def rest(self) -> Tensors:
        """Nothing: no tensor waits for another."""
        return {}


def _agrees(some: Mapping[str, Any], together: Mapping[str, Any]) -> bool:
    """Whether tensors that were converted by themselves are those of the whole model."""
    return all(together.get(name) == shape for name, shape in some.items())


def _layer(name: str) -> str:
    found = _LAYER.match(name)
    return found[0] if found else ""
