"""Adapters as files: in peft's own form, with a note of the base that they were trained beside; and merged into it."""

from __future__ import annotations

import json
import tempfile
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from arctic_huggingface.added_tokens import fill_rows
from arctic_huggingface.hub import found, no_pickles, no_progress_bars
from arctic_huggingface.layout import Layout
from arctic_huggingface.shards import ShardFiles, ShardWriter
from arctic_training.adapters import Adapter, adapter_of, fingerprint
from arctic_training.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch

    from arctic_huggingface.sources import Source

ADAPTER_CONFIG = "adapter_config.json"
"""What peft and transformers know the folder of an adapter by."""
NOTE = "arctic_adapter.json"
"""What else is known of an adapter; peft passes over it."""
STEM = "adapter_model"
WHOLE = 2**63
"""More than any file: peft reads one alone."""
PRECISIONS = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def base_of(model: Any) -> Any:
    """The model that transformers knows: the base of one that trains an adapter, whose configuration is meant."""
    return model.get_base_model() if adapter_of(model) is not None else model


@contextmanager
def without_deprecations() -> Iterator[None]:
    """Keep to itself that peft uses names of transformers that are on their way out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def write_description(adapter: Adapter, directory: Path) -> None:
    """Write ``adapter_config.json``, and what peft has no place for beside it."""
    note = attrs.asdict(adapter, filter=lambda field, _: field.name != "config")
    for name, content in ((ADAPTER_CONFIG, adapter.config), (NOTE, note)):
        (directory / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def read_description(directory: Path) -> Adapter | None:
    """What ``write_description`` wrote; None where there is no adapter.

    Raises:
        CheckpointError: the files hold something else.
    """
    if not (directory / ADAPTER_CONFIG).is_file():
        return None
    try:
        config, note = (json.loads((directory / name).read_text()) for name in (ADAPTER_CONFIG, NOTE))
        return Adapter(config=config, **note)
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"the description of the adapter cannot be read: {error}",
            where=str(directory),
            remedy="choose another checkpoint",
        ) from error


def adapter_writer(
    layout: Layout,
    adapter: Adapter,
    directory: Path,
    dtype: torch.dtype | None = None,
    run: Callable[..., object] | None = None,
) -> ShardWriter:
    """What takes the entries of a model's state and writes those of its adapter, into one file, as peft wants it."""
    arguments = {"run": run} if run is not None else {}
    files = ShardFiles(directory, WHOLE, stem=STEM, **arguments)
    return ShardWriter(None, layout, files, dtype, names=adapter.names)


def merge(source: Source, *, trusted: bool = False) -> Any:
    """The whole model of a checkpoint that holds an adapter: its base with the adapter in the weights, on the CPU.

    Args:
        source: the checkpoint.
        trusted: whether weights of the base may be pickles.

    Raises:
        CheckpointError: as of ``merged_model``.
    """
    with tempfile.TemporaryDirectory() as name:
        source.write_weights(Path(name), 0, None)
        source.copy_files(Path(name))
        return merged_model(Path(name), trusted=trusted, where=source.path)


def merged_model(folder: Path, *, trusted: bool = False, where: Path | None = None) -> Any:
    """The base of an adapter with the adapter in its weights, on the CPU.

    Args:
        folder: the adapter, as a checkpoint of type ``huggingface`` has it.
        trusted: whether weights of the base may be pickles.
        where: what to name in messages instead of the folder.

    Raises:
        CheckpointError: the base cannot be had, is another than the adapter was trained beside, or the
            adapter cannot be merged.
    """
    adapter, where = read_description(folder), where or folder
    assert adapter is not None
    base = _base(adapter, folder, trusted)
    if fingerprint(base, adapter.config.get("modules_to_save") or ()) != adapter.fingerprint:
        raise CheckpointError(
            f"the weights of {adapter.config['base_model_name_or_path']!r} are not those that the adapter was "
            "trained beside",
            where=str(where),
            remedy="put the base model back where it was",
        )
    return _merged(base.dequantize() if getattr(base, "is_quantized", False) else base, folder, where)


def _merged(base: Any, folder: Path, where: Path) -> Any:
    try:
        from peft import PeftConfig, get_peft_model, set_peft_model_state_dict
    except ImportError as error:
        raise CheckpointError(
            "adapters are merged by peft, which is not installed",
            where=str(where),
            remedy="pip install arctic-plugin-peft; without it adapters are exported as they are, without --merge",
        ) from error
    from safetensors.torch import load_file

    weights = folder / f"{STEM}.safetensors"
    if not weights.is_file():
        raise CheckpointError(
            f"there is no {weights.name}, and weights of another form are not read",
            where=str(where),
            remedy="use an adapter with safetensors",
        )
    config = PeftConfig.from_pretrained(folder)
    try:
        with without_deprecations():
            adapted = get_peft_model(base, config, autocast_adapter_dtype=False)
        report = set_peft_model_state_dict(adapted, load_file(weights))
        if report.unexpected_keys:
            raise ValueError(f"the base has no place for {report.unexpected_keys[0]}")
        return adapted.merge_and_unload(safe_merge=True)
    except (ValueError, NotImplementedError, RuntimeError, AttributeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(
            f"the {config.peft_type.value} adapter cannot be merged: {reason}",
            where=str(where),
            remedy="export it without --merge, and load it with peft beside its base model",
        ) from error


def _base(adapter: Adapter, folder: Path, trusted: bool) -> Any:
    """The base model in the precision that it had in training."""
    import torch
    import transformers

    name = str(adapter.config["base_model_name_or_path"])

    def refused(message: str, remedy: str) -> CheckpointError:
        return CheckpointError(message, remedy=remedy)

    with found(f"base model {name!r}", refused, "put the base model where it was in training"):
        config = transformers.AutoConfig.from_pretrained(folder)
        own = getattr(transformers, next(iter(config.architectures or ()), ""), None)
        plain = transformers.AutoConfig.from_pretrained(name, revision=adapter.revision)
        settings = _quantized_when_loaded(config, plain)
        text, rows = config.get_text_config(), config.get_text_config().vocab_size
        text.vocab_size = plain.get_text_config().vocab_size
        with no_pickles(name, name, refused), no_progress_bars():
            model = (own or transformers.AutoModelForCausalLM).from_pretrained(
                name,
                config=config,
                revision=adapter.revision,
                dtype=getattr(torch, PRECISIONS[adapter.precision]),
                use_safetensors=None if trusted else True,
                **settings,
            )
        if adapter.new_rows:
            fill_rows(model, adapter.new_rows, rows)
        return model


def _quantized_when_loaded(config: Any, plain: Any) -> dict[str, Any]:
    """How the weights of a base were quantized in training, for ``from_pretrained``; nothing where its files hold them
    so, or in full. What stands in the configuration, transformers takes for a property of the files."""
    import transformers

    settings = getattr(config, "quantization_config", None)
    if settings is None or getattr(plain, "quantization_config", None) is not None:
        return {}
    del config.quantization_config
    return {"quantization_config": transformers.BitsAndBytesConfig.from_dict(settings)}
