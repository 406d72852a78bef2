"""The model factory ``huggingface``: any causal language model that transformers can build, pretrained or random."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from arctic_huggingface.hub import found, local_path, progress_bars
from arctic_training.config import key
from arctic_training.errors import ArcticError
from arctic_training.model import ModelConfig, ModelFactory
from arctic_training.wording import nearest

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

WHERE = "model.name_or_path"
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
    hf_config_kwargs: dict[str, Any] = key(
        factory=dict, doc="Overrides of the architecture's configuration, by its keys."
    )
    revision: str | None = key(None, doc="Branch, tag or commit on the hub.")
    trust_remote_code: bool = key(False, doc="Run the Python code that comes with the model.")
    peft_config: dict[str, Any] | None = key(
        None, later="adapters (arctic-plugin-peft)", doc="Adapter to train: {peft_type: Lora, ...keys of its class}."
    )


class HFModelFactory(ModelFactory):
    """Builds a causal language model. Override ``create_config`` or ``create_model`` for one of your own."""

    name: ClassVar[str] = "huggingface"
    config: HFModelConfig

    def create_config(self) -> PretrainedConfig:
        """The architecture's configuration, with ``hf_config_kwargs`` applied.

        Raises:
            ArcticError: there is no such model, or it has no such key.
        """
        from transformers import AutoConfig

        with found("model", self.config.name_or_path, WHERE):
            config = AutoConfig.from_pretrained(self._location(), **self._source())
        overrides = self.config.hf_config_kwargs
        if not overrides:
            return config
        _refuse_unknown(overrides, config)
        with found("model", self.config.name_or_path, "model.hf_config_kwargs"):
            # Read again, since transformers derives some values from others when it makes a configuration.
            return AutoConfig.from_pretrained(self._location(), **self._source(), **overrides)

    def create_model(self, config: PretrainedConfig) -> PreTrainedModel:
        """The model in the recipe's precision, ready for training.

        Raises:
            ArcticError: there are no weights, or they do not fill the model.
        """
        model = self._random(config) if self.config.init == "random" else self._pretrained(config)
        # Without this a loss that calls the model by itself would let the documents of a pack see each other.
        model.config_as_loaded = {"use_cache": getattr(model.config, "use_cache", None)}
        model.config.use_cache = False
        if not self.config.disable_activation_checkpoint:
            self._checkpoint_activations(model)
        return model

    def _checkpoint_activations(self, model: PreTrainedModel) -> None:
        if not model.supports_gradient_checkpointing:
            self.run.say(
                f"model: {type(model).__name__} cannot recompute activations in backward, so all of them are kept"
            )
            return
        # The older name is deprecated where there is a newer one.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})

    def _pretrained(self, config: PretrainedConfig) -> PreTrainedModel:
        from transformers import AutoModelForCausalLM

        with (
            found("model", self.config.name_or_path, WHERE, remedy=NO_WEIGHTS),
            _explaining_attention(self.config),
            progress_bars(self.run),
        ):
            model, report = AutoModelForCausalLM.from_pretrained(
                self._location(),
                config=config,
                dtype=self.config.torch_dtype,
                attn_implementation=self.config.attn_implementation,
                output_loading_info=True,
                **self._source(),
            )
        missing = sorted(set(report["missing_keys"]) - set(getattr(model, "all_tied_weights_keys", None) or ()))
        if missing:
            raise ArcticError(
                f"{self.config.name_or_path!r} has no weights for {_some(missing)} of {type(model).__name__}",
                where=WHERE,
                remedy="correct name_or_path or hf_config_kwargs, or start from random weights with model.init: random",
            )
        unexpected = sorted(report["unexpected_keys"])
        if unexpected:
            self.run.say(
                f"model: weights that {type(model).__name__} has no place for are left out: {_some(unexpected)}"
            )
        return model

    def _random(self, config: PretrainedConfig) -> PreTrainedModel:
        import torch
        from transformers import AutoModelForCausalLM

        seed = self.run.config.seed
        devices = [self.device] if self.device.type != "cpu" else []
        with torch.random.fork_rng(devices, device_type=self.device.type if devices else "cuda"):
            torch.manual_seed(seed)
            with found("model", self.config.name_or_path, WHERE), _explaining_attention(self.config):
                model = AutoModelForCausalLM.from_config(
                    config,
                    dtype=self.config.torch_dtype,
                    attn_implementation=self.config.attn_implementation,
                    trust_remote_code=self.config.trust_remote_code,
                )
        self.run.say(f"model: {type(model).__name__} with random weights (model.init: random, seed {seed})")
        return model

    def _location(self) -> str:
        return str(local_path(self.config.name_or_path, self.run) or self.config.name_or_path)

    def _source(self) -> dict[str, Any]:
        source: dict[str, Any] = {"trust_remote_code": self.config.trust_remote_code}
        return source | ({"revision": self.config.revision} if self.config.revision else {})


class _explaining_attention:
    """Names ``attn_implementation`` when transformers refuses it, with a ValueError or ImportError of many words."""

    def __init__(self, config: HFModelConfig) -> None:
        self.config = config

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        text = str(error)
        if isinstance(error, (ValueError, ImportError)) and ("attention" in text.lower() or "attn" in text):
            raise ArcticError(
                f"{self.config.attn_implementation!r} cannot be used here: {text.splitlines()[0]}",
                where="model.attn_implementation",
                remedy="use sdpa or eager, which need nothing more than torch",
            ) from error


def _refuse_unknown(overrides: Mapping[str, Any], config: Any, path: str = "model.hf_config_kwargs") -> None:
    """A configuration takes any attribute in silence, so the keys that it has by itself are the ones that it knows."""
    from transformers import PretrainedConfig

    known = {name for name in {**config.to_dict(), **vars(config)} if not name.startswith("_")}
    known |= set(config.attribute_map)
    for name, value in overrides.items():
        if name not in known:
            raise ArcticError(
                f"{type(config).__name__} has no key {name!r}",
                where=path,
                remedy=nearest(name, known) or f"its keys are {', '.join(sorted(known))}",
            )
        inner = getattr(config, name, None)
        if isinstance(inner, PretrainedConfig) and isinstance(value, Mapping):
            _refuse_unknown(value, inner, f"{path}.{name}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
