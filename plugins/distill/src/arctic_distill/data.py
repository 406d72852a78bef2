"""Data of distillation: chats, as for every objective on them, and what the teacher predicts where that is stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from arctic_distill.top_k import with_top_k
from arctic_huggingface.chat.data import ChatDataConfig, ChatDataFactory
from arctic_huggingface.companions import identity, num_words
from arctic_training.config import key
from arctic_training.token_rows import TokenRows


class DistillDataConfig(ChatDataConfig):
    teacher_top_k: int = key(
        0,
        ge=0,
        doc="Store this many of the teacher's likeliest words for each trained token with the prepared rows, so that "
        "training needs no teacher; 8 bytes for each, and for each token of a row. 0 asks the teacher while training.",
    )

    def check(self) -> Iterator[tuple[str, str]]:
        yield from super().check()
        if not self.teacher_top_k:
            return
        if self.streaming:
            yield "teacher_top_k", "is stored with prepared rows, and a stream has none: set streaming: false"
        if self.over_long_policy in ("truncate_left", "split", None):
            yield (
                "teacher_top_k",
                "is of whole rows, and the beginning of over-long ones is cut off: set over_long: drop",
            )
        if self.fuse_positions_prob:
            yield "fuse_positions_prob", "makes one text of several, and data.teacher_top_k is of each by itself"
        if not all(source.process for source in (*self.sources, *self.eval_sources)):
            yield "teacher_top_k", "is stored of rows that are processed here, and a source has process: false"


class DistillDataFactory(ChatDataFactory):
    """Chats with a ``messages`` column to rows, or packs of rows, with labels on what the assistant said; and with what
    the teacher predicts, where the recipe lets that be stored."""

    name = "distill"
    config: DistillDataConfig

    def draws(self) -> bool:  # said once more here, since a class speaks for itself alone
        return super().draws()

    def with_more_columns(self, rows: TokenRows) -> TokenRows:
        return with_top_k(rows, self) if self.config.teacher_top_k else rows

    def fingerprint_parts(self) -> Mapping[str, Any] | None:
        if not self.config.teacher_top_k:
            return {}
        config: Any = self.run.config
        teacher = identity(self.run, config.teacher)
        if teacher is None:
            return None
        return {"teacher": teacher, "temperature": config.temperature, "words": num_words(self.run.model_config)}
