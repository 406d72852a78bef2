"""``arctic export``: any checkpoint that Arctic wrote as a folder that transformers loads.

It needs no run: no device, no ranks, no recipe. The weights go through memory tensor by tensor, from the checkpoint's
files, which are mapped, into files of a bounded size.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from arctic_training.errors import CheckpointError, UsageError
from arctic_training.human_numbers import parse_number
from arctic_training.manifest import sync
from arctic_training.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from arctic_huggingface.sources import Source

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@click.command(name="export")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--dtype",
    type=click.Choice([*DTYPES]),
    help="Precision to write the trained weights in; by default the one that they were trained in.",
)
@click.option(
    "--max-shard-size",
    metavar="BYTES",
    default="5b",
    show_default=True,
    help="Largest weight file, such as 500m, 5b (billions) or 2Gi; a tensor is never divided.",
)
@click.option("--merge", is_flag=True, help="Write the whole model of an adapter: its base with the adapter merged.")
@click.option("--overwrite", is_flag=True, help="Replace the model that is in OUT.")
@click.pass_obj
def command(
    settings: Any, checkpoint: Path, out: Path, dtype: str | None, max_shard_size: str, merge: bool, overwrite: bool
) -> None:
    """Make a folder OUT, which transformers loads, of the model in CHECKPOINT; of an adapter one that peft loads.

    CHECKPOINT is a directory global_step_<n> of any kind, or the output_dir above it, of which the newest that is whole
    is taken.
    """
    from arctic_huggingface.sources import find_source
    from arctic_training.plugins import create_plugin_manager

    size = _bytes(max_shard_size)
    manager = create_plugin_manager(block=getattr(settings, "block", ()))
    trusted = getattr(settings, "trust", False)
    source = find_source(checkpoint, manager, say=lambda text: click.echo(text, err=True), trusted=trusted)
    click.echo(
        f"{source.path}: {source.kind}, step {source.step}, written by {counted(source.num_ranks, 'rank')}", err=True
    )
    if merge and source.adapter is None:
        raise UsageError(f"{source.path} holds a whole model and no adapter", remedy="leave --merge out")
    write = (lambda *arguments: _write_merged(source, trusted, *arguments)) if merge else None
    export(source, out, dtype=dtype, max_shard_size=size, overwrite=overwrite, write=write)
    files = [path.stat().st_size for path in out.glob("*.safetensors")]
    click.echo(f"{out}: {sum(files):,} bytes of weights in {counted(len(files), 'file')}")


def export(
    source: Source,
    out: Path,
    *,
    dtype: str | None = None,
    max_shard_size: int = 5 * 10**9,
    overwrite: bool = False,
    write: Callable[[Path, int, Any], None] | None = None,
) -> None:
    """Write the model of a checkpoint into the folder ``out``, which appears when it is whole.

    Args:
        source: what ``find_source`` gave.
        out: a folder that is not there or is empty.
        dtype: ``fp32``, ``bf16`` or ``fp16`` for the weights; None leaves them as they are.
        max_shard_size: largest weight file in bytes.
        overwrite: replace the model that is in ``out``.
        write: writes the model in place of ``source``: takes a directory, ``max_shard_size`` and the precision.

    Raises:
        CheckpointError: ``out`` is taken, there is no room, or the weights are not those that the checkpoint describes.
    """
    import torch

    wanted = getattr(torch, DTYPES[dtype]) if dtype else None
    out = out.absolute()
    _refuse_taken(out, source.path, overwrite)
    with _appearing(out) as directory:
        if write is not None:
            write(directory, max_shard_size, wanted)
        else:
            _refuse_full(directory, source.size(wanted))
            source.write_weights(directory, max_shard_size, wanted)
            source.copy_files(directory)
        if dtype:
            _set_precision(directory / "config.json", DTYPES[dtype])


def _write_merged(
    source: Source, trusted: bool, directory: Path, max_shard_size: int, dtype: torch.dtype | None
) -> None:
    """Write the base model with the adapter in its weights."""
    from arctic_huggingface.adapters import ADAPTER_CONFIG, NOTE, merge
    from arctic_huggingface.layout import Layout
    from arctic_huggingface.model_files import write_configuration
    from arctic_huggingface.shards import ShardFiles, ShardWriter

    model = merge(source, trusted=trusted)
    layout = Layout.of(model)
    _refuse_full(directory, sum(parameter.nbytes for parameter in model.parameters()))
    writer = ShardWriter(model, layout, ShardFiles(directory, max_shard_size), dtype)
    for name, tensor in model.state_dict().items():
        writer.add(name, tensor)
    writer.finish()
    source.copy_files(directory)
    for name in (ADAPTER_CONFIG, NOTE):
        (directory / name).unlink()
    write_configuration(model, directory)


def _bytes(text: str) -> int:
    with suppress(ValueError):
        if (size := int(parse_number(text, whole=True))) > 0:
            return size
    raise UsageError(f"--max-shard-size takes a number of bytes, found {text!r}", remedy="write it as 500m, 5b or 2Gi")


def _refuse_taken(out: Path, checkpoint: Path, overwrite: bool) -> None:
    """Leave alone what is there already; even ``overwrite`` replaces nothing that is not a model."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if out.is_dir() and overwrite and any((out / name).is_file() for name in ("config.json", "adapter_config.json")):
        if (out / "manifest.json").exists() or out.resolve() in (checkpoint.resolve(), *checkpoint.resolve().parents):
            raise CheckpointError(
                "this is a checkpoint, which --overwrite does not replace", where=str(out), remedy="name another folder"
            )
        return
    if overwrite:
        raise CheckpointError(
            "--overwrite replaces the folder of a model, and this is none",
            where=str(out),
            remedy="name another folder",
        )
    raise CheckpointError(
        "there is something already", where=str(out), remedy="name another folder, or replace it with --overwrite"
    )


def _refuse_full(directory: Path, needed: int) -> None:
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise CheckpointError(
            f"the model needs {needed:,} bytes, and {free:,} are free",
            where=str(directory.parent),
            remedy="free some space or name a folder on another disk",
        )


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """A directory to write into that takes the place of ``out`` at the end, or is gone when that is not reached."""
    from safetensors import SafetensorError

    incomplete, replaced = (out.with_name(out.name + ending) for ending in (".incomplete", ".replaced"))
    try:
        shutil.rmtree(incomplete, ignore_errors=True)  # of an export that was killed
        incomplete.mkdir(parents=True)
        yield incomplete
        for file in incomplete.rglob("*"):
            sync(file)
        if out.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            os.rename(out, replaced)
        os.rename(incomplete, out)
        sync(out.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"the model cannot be written: {error}", where=str(out), remedy="free some space or name another folder"
        ) from error
    finally:
        shutil.rmtree(incomplete, ignore_errors=True)


def _set_precision(path: Path, dtype: str) -> None:
    """Name the precision wherever a configuration or one inside it does."""

    def changed(content: dict[str, Any]) -> dict[str, Any]:
        inner = {name: changed(value) for name, value in content.items() if isinstance(value, dict)}
        named = {name: dtype for name in ("dtype", "torch_dtype") if name in content}
        return content | inner | named

    content = changed(json.loads(path.read_text()))
    path.write_text(json.dumps(content, indent=2) + "\n")
