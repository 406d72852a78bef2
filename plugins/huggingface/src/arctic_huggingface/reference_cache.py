"""What a reference says of all rows, found once before training and kept beside the prepared data.

Values are held by the number of a row, which may be a pack, and its documents in their order: so they are the same for
every order of rows, number of ranks, and point from which training goes on. Shapes: D documents of a micro-batch.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_huggingface.hub import local_path, refusal
from arctic_huggingface.places import folder_hash
from arctic_training.cache_key import KEY_LENGTH, options_of
from arctic_training.dataloader import MicroBatch
from arctic_training.distributed import from_first_rank, sum_over_ranks
from arctic_training.documents import document_ids, sums_by_document

if TYPE_CHECKING:
    import numpy as np
    import torch

    from arctic_training.run import Run

COLUMN = "reference_log_probabilities"
DECIDES_NOTHING = {"name_or_path", "save_name", "disable_activation_checkpoint"}
"""Keys of a model section that change nothing of what the model says; its content is looked at by itself."""


class WithReference(Sequence[dict[str, Any]]):
    """Rows with a column more: at the first token of each document what the reference says of it, 0 elsewhere.

    Args:
        rows: prepared rows with ``position_ids``.
        values: of all documents, float64, in the order of the rows.
        offsets: where the values of each row begin, and those of the last end.
    """

    def __init__(self, rows: Any, values: np.ndarray, offsets: np.ndarray) -> None:
        self.rows = rows
        self.values = values
        self.offsets = offsets

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        import numpy as np

        row = self.rows[index]
        column: np.ndarray = np.zeros(len(row["input_ids"]), np.float64)
        column[row["position_ids"] == 0] = self.values[self.offsets[index] : self.offsets[index + 1]]
        return {**row, COLUMN: column}


def from_columns(batch: Any) -> torch.Tensor:
    """What the reference says of each document of a micro-batch, of shape (D,), as it was found beforehand."""
    return sums_by_document(batch.columns[COLUMN], document_ids(batch))


def add_reference(run: Run, loader: Any, ask: Callable[[Any], torch.Tensor]) -> None:
    """Give the rows of a loader what the reference says of them, from the cache or found now. Every rank calls it.

    Args:
        run: the run.
        loader: hands out prepared rows.
        ask: tells what the reference says of each document of a micro-batch; not called where all is in the cache.
    """
    import numpy as np

    counts = [np.count_nonzero(np.asarray(row["position_ids"]) == 0) for row in loader.rows]
    offsets = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    path = _cache_file(run, loader.rows)
    values = from_first_rank(_read(path, int(offsets[-1])) if run.world.is_first else None)
    if values is None:
        values = _ask_for_all(run, loader, offsets, ask)
        if path is not None and run.world.is_first:
            _write(path, values)
    loader.rows = WithReference(loader.rows, values, offsets)


def _ask_for_all(run: Run, loader: Any, offsets: np.ndarray, ask: Callable[[Any], torch.Tensor]) -> np.ndarray:
    """Each rank asks for its share of the micro-batches."""
    import torch

    rows, size, world = loader.rows, loader.micro_batch_size, run.world
    values = torch.zeros(int(offsets[-1]), dtype=torch.float64, device=run.device)
    tell = run.progress_of("reference")
    for start in range(0, len(rows), size * world.size):
        first = start + world.rank * size
        numbers = range(first, min(first + size, len(rows)))
        # Without rows it asks for some all the same: ZeRO-3 needs every rank in every forward pass.
        batch = MicroBatch(loader.collate([rows[number] for number in numbers or [0]]), numbers).to(run.device)
        found = ask(batch)
        for begin, number in zip(document_ids(batch)[:, 0].tolist(), numbers, strict=False):
            own, behind = int(offsets[number]), int(offsets[number + 1])
            values[own:behind] = found[begin : begin + behind - own]  # and not what is said of padding
        tell(min(start + size * world.size, len(rows)), len(rows))
    result: np.ndarray = sum_over_ranks(values, run.device).cpu().numpy()
    return result


def _cache_file(run: Run, rows: Any) -> Path | None:
    """Where values are kept: beside the rows, under a name that tells whose they are; None where nobody can tell."""
    config: Any = run.config
    identity = _identity(run, config.ref_model or config.model)
    if identity is None or not hasattr(rows, "path"):
        return None
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:KEY_LENGTH]
    return Path(rows.path) / f"reference-{digest}.npy"


def _identity(run: Run, section: Any) -> dict[str, Any] | None:
    """What a model's answers depend on: its files or commit, what the recipe asks of them, and who computes them."""
    import torch
    import transformers

    folder = local_path(section.name_or_path, run, refusal(run, "ref_model.name_or_path"))
    config = run.plugins.ask("arctic_build_model_config", object, config=section, run=run)
    content = folder_hash(folder) if folder is not None else getattr(config, "_commit_hash", None)
    if content is None:
        return None
    return {
        "content": content,
        "options": options_of(section, DECIDES_NOTHING),
        "seed": run.config.seed if getattr(section, "init", "") == "random" else None,
        "device": run.device.type,
        "libraries": [torch.__version__, transformers.__version__],
    }


def _read(path: Path | None, number: int) -> np.ndarray | None:
    """The values of a file, if it is there and holds as many."""
    import numpy as np

    try:
        values = None if path is None else np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return values if values is not None and values.shape == (number,) else None


def _write(path: Path, values: np.ndarray) -> None:
    """Whole or not at all."""
    import numpy as np

    incomplete = path.with_name(f"{path.name}.{os.getpid()}.incomplete")
    with open(incomplete, "wb") as file:
        np.save(file, values)
        file.flush()
        os.fsync(file.fileno())
    os.replace(incomplete, path)
