"""The data sources of other objectives than learning chats: preference pairs, labelled answers, texts that belong
together."""

from __future__ import annotations

from collections.abc import Iterator

from arctic_huggingface.chats import PAIR_NOT_LABELLED, ChatReader
from arctic_huggingface.preferences import PREFERENCE_COLUMNS, LabelledReader, PreferenceReader
from arctic_huggingface.rows import Reader
from arctic_huggingface.source import (
    HFDataSource,
    HFInstructDataSource,
    HFInstructSourceConfig,
    HFMessagesDataSource,
    HFMessagesSourceConfig,
    HFSourceConfig,
)
from arctic_huggingface.text_pairs import PAIR_COLUMNS, PairsReader
from arctic_training.config import key


class HFPreferenceSourceConfig(HFMessagesSourceConfig):
    column_mapping: dict[str, str] = key(
        factory=dict,
        doc="What the data set calls the columns prompt, chosen, rejected, system, tools and margin: {chosen: better}.",
    )

    def check(self) -> Iterator[tuple[str, str]]:
        yield from super().check()
        for name in self.column_mapping:
            if name not in PREFERENCE_COLUMNS:
                yield "column_mapping", f"expected a name out of {', '.join(PREFERENCE_COLUMNS)}, found {name!r}"


class HFPreferenceDataSource(HFMessagesDataSource):
    """Pairs of a better and a worse answer: rows with ``chosen`` and ``rejected``, two whole chats with one prompt."""

    name = "huggingface_preference"
    config: HFPreferenceSourceConfig

    def reader(self, *, columnar: bool) -> Reader:
        return PreferenceReader(self.message_reader(columnar=columnar), self.config.column_mapping)


class HFLabelledSourceConfig(HFInstructSourceConfig):
    label_column: str = key("label", doc="Column that says whether the answer is good: true or false, 1 or 0.")

    def check(self) -> Iterator[tuple[str, str]]:
        yield from super().check()
        if self.format == "preference":
            yield "format", f"rows with two answers have no label: {PAIR_NOT_LABELLED}"


class HFLabelledDataSource(HFInstructDataSource):
    """Chats whose last answer is labelled good or bad: rows with ``messages`` and ``label``."""

    name = "huggingface_labelled"
    config: HFLabelledSourceConfig

    def reader(self, *, columnar: bool) -> Reader:
        messages = self.message_reader(columnar=columnar)
        chats = ChatReader(messages, self.config.role_mapping, self.config.format, labelled=True)
        return LabelledReader(chats, self.config.label_column)


class HFPairsSourceConfig(HFSourceConfig):
    column_mapping: dict[str, str] = key(
        factory=dict, doc="What the data set calls the columns query, positive and negatives: {query: question}."
    )

    def check(self) -> Iterator[tuple[str, str]]:
        yield from super().check()
        for name in self.column_mapping:
            if name not in PAIR_COLUMNS:
                yield "column_mapping", f"expected a name out of {', '.join(PAIR_COLUMNS)}, found {name!r}"


class HFPairsDataSource(HFDataSource):
    """Texts that belong together: rows with ``query``, ``positive`` and ``negatives``, a list."""

    name = "huggingface_pairs"
    config: HFPairsSourceConfig

    def reader(self, *, columnar: bool) -> Reader:
        return PairsReader(self.config.column_mapping)
