"""The model factory ``liger``: that of ``huggingface`` with the kernels asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from arctic_huggingface.model import HFModelConfig, HFModelFactory
from arctic_training.config import key


class LigerModelConfig(HFModelConfig):
    liger: bool = key(True, doc="Always true here; without the kernels it is the type `huggingface`.")

    def check(self) -> Iterator[tuple[str, str]]:
        yield from super().check()
        if not self.liger:
            yield "liger", "contradicts the type 'liger': leave one of them out"


class LigerModelFactory(HFModelFactory):
    """Builds what ``huggingface`` builds; the plugin's wrapper puts the kernels into it."""

    name: ClassVar[str] = "liger"
    config: LigerModelConfig
