"""The model factory ``huggingface``: any causal language model that transformers can build, pretrained or random."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from arctic_huggingface.activations import checkpoint_activations
from arctic_huggingface.added_tokens import AddedTokens, make_room
from arctic_huggingface.hub import (
    found,
    local_path,
    no_pickles,
    note_remote_code,
    progress_bars,
    refusal,
    refuse_checkpoints,
    weights_are_pickles,
)
from arctic_huggingface.overrides import overridden, unknown_overrides
from arctic_huggingface.quantization import keep_as_loaded, quantized
from arctic_training.config import key
from arctic_training.model import ModelConfig, ModelFactory

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager

    from transformers import PretrainedConfig, PreTrainedModel

    from arctic_huggingface.hub import Refusal

WHERE = "name_or_path"
OVERRIDES = "hf_config_kwargs"
NO_WEIGHTS = "give a model whose weights fit its configuration, or start from random ones with model.init: random"


class HFModelConfig(ModelConfig):
    init: Literal["pretrained", "random"] = key(
        "pretrained",
        doc="random builds the model from its configuration alone, with weights drawn with the recipe's seed.",
    )
    attn_implementation: str = key(
        "sdpa",
        doc="How attention is computed: sdpa, eager, flex_attention, flash_attention_2, ... as transformers has it.",
    )
    disable_activation_checkpoint: bool = key(
        False, doc="true keeps all activations for backward: faster, and far more memory."
    )
    liger: bool = key(
        False, needs="arctic-plugin-liger", doc="Compute norms, rotary embeddings and MLPs with liger's fused kernels."
    )
    hf_config_kwargs: dict[str, Any] = key(
        factory=dict, doc="Overrides of the architecture's configuration, by its keys."
    )
    pad_vocabulary_to_multiple_of: int = key(
        1, ge=1, doc="Rows of the embeddings are rounded up to a multiple of it; 64 suits accelerators."
    )
    quantization: Literal["4bit"] | None = key(
        None,
        doc="4bit keeps the frozen weights beside an adapter in 4 bits, by bitsandbytes (QLoRA, arXiv:2305.14314).",
    )
    revision: str | None = key(None, doc="Branch, tag or commit on the hub.")
    trust_remote_code: bool = key(False, doc="Run the Python code that comes with the model.")
    peft_config: dict[str, Any] | None = key(
        None,
        needs="arctic-plugin-peft",
        doc="Adapter to train beside the model, which stays as it is: {peft_type: Lora, ...keys of peft's class}.",
    )

    def check(self) -> Iterator[tuple[str, str]]:
        yield from super().check()
        if self.quantization and self.init == "random":
            yield "quantization", "has no effect on weights that are drawn at random"


class HFModelFactory(ModelFactory):
    """Builds a causal language model. Override ``create_config`` or ``create_model`` for one of your own."""

    name: ClassVar[str] = "huggingface"
    config: HFModelConfig
    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    """The class of transformers that builds the model."""
    new_weights: ClassVar[tuple[str, ...]] = ()
    """How names of weights begin that may be missing where the others are pretrained, and are then random."""

    def create_config(self) -> PretrainedConfig:
        """The architecture's configuration, with ``hf_config_kwargs`` applied.

        Raises:
            RecipeError: there is no such model, or it has no such key.
        """
        from transformers import AutoConfig

        with self._found():
            config = AutoConfig.from_pretrained(self._location(), **self._source())
        return self._overridden(config) if self.config.hf_config_kwargs else config

    def create_model(self, config: PretrainedConfig) -> PreTrainedModel:
        """The model in the recipe's precision, ready for training.

        Raises:
            RecipeError: there are no weights, or they do not fill the model.
        """
        model = self._random(config) if self.config.init == "random" else self._pretrained(config)
        commit = getattr(config, "_commit_hash", None)
        note_remote_code(self.run, "model", type(model), self.config.name_or_path, self.config.revision, commit)
        self._make_room(model)
        # Without this a loss that calls the model by itself would let the documents of a pack see each other.
        model.config_as_loaded = {"use_cache": getattr(model.config, "use_cache", None)}
        model.config.use_cache = False
        if not self.config.disable_activation_checkpoint:
            self._checkpoint_activations(model)
        return model

    def _make_room(self, model: PreTrainedModel) -> None:
        """Rows for the tokens that the recipe adds; before any engine partitions what it can."""
        multiple = self.config.pad_vocabulary_to_multiple_of
        section = getattr(self.run.config, "tokenizer", None)
        added = getattr(self.run.component("tokenizer"), "added", None) if section else None
        if not added and multiple == 1:
            return
        try:
            make_room(model, added or AddedTokens(), multiple, self.run)
        except (TypeError, NotImplementedError) as error:
            raise refusal(self.run, "tokenizer.added_tokens" if added else "model.pad_vocabulary_to_multiple_of")(
                f"the embeddings of {type(model).__name__} cannot be resized: {error}",
                "leave the added tokens and the padding of the vocabulary out",
            ) from error

    def _checkpoint_activations(self, model: PreTrainedModel) -> None:
        offload = getattr(self.run.config, "activation_checkpoint_cpu_offload", False)
        if model.supports_gradient_checkpointing:
            checkpoint_activations(model, offload=offload, device=self.device)
            return
        cannot = f"{type(model).__name__} cannot recompute activations in backward"
        if offload:
            raise refusal(self.run, "activation_checkpoint_cpu_offload")(
                f"{cannot}, so none are checkpointed that could be offloaded", "set it to false"
            )
        self.run.say(f"model: {cannot}, so all of them are kept")

    def _pretrained(self, config: PretrainedConfig) -> PreTrainedModel:
        trusted = self.run.config.trusted
        if str(getattr(config, "transformers_weights", None) or "").endswith(".bin") and not trusted:
            raise weights_are_pickles(self.config.name_or_path, self._refusal(WHERE))
        with (
            self._found(remedy=NO_WEIGHTS),
            no_pickles(self.config.name_or_path, self._location(), self._refusal(WHERE)),
            self._explaining_attention(),
            progress_bars(self.run),
            self._seeded(),
        ):
            model, report = self._auto_class().from_pretrained(
                self._location(),
                config=config,
                dtype=self.config.torch_dtype,
                attn_implementation=self.config.attn_implementation,
                output_loading_info=True,
                use_safetensors=None if trusted else True,
                **quantized(self.config, self.run, self.device),
                **self._source(),
            )
        keep_as_loaded(model)
        missing = missing_weights(model, report)
        new = [name for name in missing if name.startswith(self.new_weights)] if self.new_weights else []
        if new:
            self.run.say(
                f"model: {self.config.name_or_path!r} has no weights for {_some(new)}, which begin at random, drawn "
                "with the recipe's seed"
            )
        if missing := [name for name in missing if name not in new]:
            raise self._refusal(WHERE)(lacks(self.config.name_or_path, missing, model), NO_WEIGHTS)
        unexpected = sorted(report["unexpected_keys"])
        if unexpected:
            self.run.say(
                f"model: weights that {type(model).__name__} has no place for are left out: {_some(unexpected)}"
            )
        return model

    def _random(self, config: PretrainedConfig) -> PreTrainedModel:
        seed = self.run.config.seed
        with self._seeded(), self._found(), self._explaining_attention():
            model = self._auto_class().from_config(
                config,
                dtype=self.config.torch_dtype,
                attn_implementation=self.config.attn_implementation,
                trust_remote_code=self.config.trust_remote_code,
            )
        self.run.say(f"model: {type(model).__name__} with random weights (model.init: random, seed {seed})")
        return model

    @contextmanager
    def _seeded(self) -> Iterator[None]:
        """Random numbers of the recipe's seed; those of the run go on as they were."""
        import torch

        devices = [self.device] if self.device.type != "cpu" else []
        with torch.random.fork_rng(devices, device_type=self.device.type if devices else "cuda"):
            torch.manual_seed(self.run.config.seed)
            yield

    def _auto_class(self) -> Any:
        import transformers

        return getattr(transformers, self.auto_class)

    def _refusal(self, key: str) -> Refusal:
        """Makes errors about a key of this section, which need not be the one called ``model``."""
        section = ".".join(map(str, self.config.section_path)) or "model"
        return refusal(self.run, f"{section}.{key}")

    def _location(self) -> str:
        name = self.config.name_or_path
        folder = local_path(name, self.run, self._refusal(WHERE))
        if folder is not None:
            refuse_checkpoints(name, folder, self._refusal(WHERE))
        return str(folder or name)

    def _source(self) -> dict[str, Any]:
        source: dict[str, Any] = {"trust_remote_code": self.config.trust_remote_code}
        return source | ({"revision": self.config.revision} if self.config.revision else {})

    def _found(self, key: str = WHERE, remedy: str = "the log has the whole of it") -> AbstractContextManager[None]:
        on_hub = not Path(self._location()).exists()
        return found(f"model {self.config.name_or_path!r}", self._refusal(key), remedy, on_hub=on_hub)

    @contextmanager
    def _explaining_attention(self) -> Iterator[None]:
        """Names ``attn_implementation`` when transformers refuses it, in many words, or cannot train with it."""
        if self.config.attn_implementation == "flex_attention" and self.device.type == "cpu":
            raise self._refusal("attn_implementation")(
                "'flex_attention' has no backward pass on a CPU",
                "use sdpa or eager, which need nothing more than torch",
            )
        try:
            yield
        except (ValueError, ImportError) as error:
            text = str(error)
            if "attention" not in text.lower() and "attn" not in text:
                raise
            raise self._refusal("attn_implementation")(
                f"{self.config.attn_implementation!r} cannot be used here: {text.splitlines()[0]}",
                "use sdpa or eager, which need nothing more than torch",
            ) from error

    def _overridden(self, config: PretrainedConfig) -> PretrainedConfig:
        overrides = self.config.hf_config_kwargs
        for path, message, remedy in unknown_overrides(config, overrides):
            raise self._refusal(".".join((OVERRIDES, *path)))(message, remedy)
        with self._found(OVERRIDES):
            content, _ = type(config).get_config_dict(self._location(), **self._source())
            return type(config).from_dict(overridden(config, content, overrides), name_or_path=self._location())


def missing_weights(model: PreTrainedModel, report: Mapping[str, Any]) -> list[str]:
    """The weights that the files of a model lacked, without those that are others of it once more.

    Args:
        model: as transformers loaded it; what lacked is drawn at random.
        report: what ``from_pretrained`` gave with ``output_loading_info``.
    """
    return sorted(set(report["missing_keys"]) - set(getattr(model, "all_tied_weights_keys", None) or ()))


def lacks(name: str, missing: list[str], model: PreTrainedModel) -> str:
    """What to say of a model of this name whose files lack weights."""
    return f"{name!r} has no weights for {_some(missing)} of {type(model).__name__}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
