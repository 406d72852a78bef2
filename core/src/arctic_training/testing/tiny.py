"""Components so small that a training takes a second, of torch alone: a one-layer causal model over bytes.

They are complete: everything that the core does with a trainer, it does with these.
"""

from __future__ import annotations

import hashlib
import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from arctic_training.config import key
from arctic_training.data import DataConfig, DataFactory, DataSource, Rows, SourceConfig
from arctic_training.hookspecs import hookimpl
from arctic_training.loss import IGNORE_INDEX
from arctic_training.model import ModelConfig, ModelFactory
from arctic_training.tokenizer import TokenizerConfig, TokenizerFactory
from arctic_training.trainer import Trainer

if TYPE_CHECKING:
    import torch

    from arctic_training.registry import Components

WORDS = 257
PAD = 256


class TinyTokenizerFactory(TokenizerFactory):
    """Bytes are tokens."""

    name = "tiny"
    config: TokenizerConfig

    def create_tokenizer(self) -> Any:
        return SimpleNamespace(encode=lambda text: list(text.encode()), decode=lambda ids: bytes(ids).decode())

    def fingerprint(self, tokenizer: Any) -> str:
        return "bytes"


class TinyModelConfig(ModelConfig):
    name_or_path: str = key("tiny", doc="Not looked at.")
    hidden_size: int = key(16, ge=1, doc="Width of the model.")
    dropout: float = key(0.0, ge=0, lt=1, doc="Share of activations that training drops.")


class TinyModelFactory(ModelFactory):
    """A causal model: embeddings, a running mean of what came before, one hidden layer."""

    name = "tiny"
    config: TinyModelConfig

    def create_config(self) -> Any:
        return SimpleNamespace(hidden_size=self.config.hidden_size, max_position_embeddings=512)

    def create_model(self, config: Any) -> torch.nn.Module:
        from arctic_training.testing.tiny_model import TinyModel

        return TinyModel(WORDS, config.hidden_size, self.config.dropout).to(self.config.torch_dtype)


class TinySourceConfig(SourceConfig):
    texts: list[str] = key(factory=list, doc="Rows of text; words counted in German by default.")


class TinySource(DataSource):
    """Rows of text from the recipe."""

    name = "tiny"
    config: TinySourceConfig

    def load(self, config: TinySourceConfig, split: str) -> Rows:  # type: ignore[override]
        numbers = ["eins", "zwei", "drei", "vier", "fuenf", "sechs", "sieben", "acht", "neun", "zehn"]
        counted = [" ".join(numbers[: 1 + row % 10]) for row in range(64)]
        return [{"text": text} for text in config.texts or counted]

    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self.config.texts).encode()).hexdigest()


class TinyDataConfig(DataConfig):
    pass


class TinyDataFactory(DataFactory):
    """Every token but the first is trained; rows are padded on the right."""

    name = "tiny"
    config: TinyDataConfig
    default_source = "tiny"

    def process(self, dataset: Rows) -> Rows:
        rows = []
        for number in range(len(dataset)):
            ids = self.tokenizer.encode(dataset[number]["text"])[: self.max_length]
            rows.append({"input_ids": ids, "labels": [IGNORE_INDEX, *ids[1:]]})
        return rows

    def collate(self, rows: list[Any]) -> dict[str, torch.Tensor]:
        import torch

        length = max(len(row["input_ids"]) for row in rows)
        batch = {
            "input_ids": torch.full((len(rows), length), PAD),
            "labels": torch.full((len(rows), length), IGNORE_INDEX),
        }
        for number, row in enumerate(rows):
            for name, tensor in batch.items():
                tensor[number, : len(row[name])] = torch.as_tensor(row[name])
        return batch


class TinyTrainer(Trainer):
    """Trains the tiny model on the tiny data."""

    name = "tiny"
    model_factory: TinyModelFactory
    data_factory: TinyDataFactory
    tokenizer_factory: TinyTokenizerFactory


@hookimpl
def arctic_register_components(components: Components) -> None:
    components.trainer("tiny", TinyTrainer)
    components.model("tiny", TinyModelFactory)
    components.data("tiny", TinyDataFactory)
    components.data_source("tiny", TinySource)
    components.tokenizer("tiny", TinyTokenizerFactory)
