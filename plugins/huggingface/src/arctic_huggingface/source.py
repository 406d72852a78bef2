"""The data sources ``huggingface`` and ``huggingface_instruct``: hub names, saved folders, files of usual formats.

Where rows come from is decided here, for every source of this plugin; what they are made into by a reader.
"""

from __future__ import annotations

import hashlib
import json
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from arctic_huggingface.chats import ChatFormat, ChatReader
from arctic_huggingface.files import FORMATS, format_of_all, read_files
from arctic_huggingface.hub import local_path, search_folders
from arctic_huggingface.library import is_saved, load_named, load_saved, reading, refused
from arctic_huggingface.messages import MessageReader
from arctic_huggingface.places import (
    DataFile,
    content_hash,
    find_files,
    find_remote_files,
    folder_hash,
    is_address,
)
from arctic_huggingface.preferences import PreferenceReader
from arctic_huggingface.rows import NumberedRows, Reader, ReadRows, TableRows
from arctic_huggingface.splits import FILE_SPLITS, first_rows, map_split, split_names, take
from arctic_huggingface.streams import LibraryStream, LineStream, ParquetStream, ReadStream, SlicedStream
from arctic_training.cache_key import options_of
from arctic_training.config import key, keys_of
from arctic_training.data import DataSource, Rows, SourceConfig
from arctic_training.errors import BadRow, DataError
from arctic_training.redaction import without_secrets
from arctic_training.stream import LoadedStream, RowStream

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

KNOWN_SPLITS: dict[str, dict[str, str]] = {
    "HuggingFaceH4/ultrachat_200k": {"train": "train_sft", "eval": "test_sft"},
    "HuggingFaceH4/ultrafeedback_binarized": {"train": "train_prefs", "eval": "test_prefs"},
    "Anthropic/hh-rlhf": {"eval": "test"},
    "openai/gsm8k": {"eval": "test"},
    "HuggingFaceTB/smoltalk": {"eval": "test"},
}
"""What data sets on the hub call the rows to train and to evaluate on."""

KNOWN_CHAT_SPLITS: dict[str, dict[str, str]] = {
    "HuggingFaceH4/ultrafeedback_binarized": {"train": "train_sft", "eval": "test_sft"},
}
"""The same where the rows for chats stand apart from those for preferences."""

PROBED_ROWS = 20
"""Rows of which one has to be usable, so that a source of another format is told before anything is tokenised."""

KNOWN_KWARGS: dict[str, dict[str, Any]] = {"openai/gsm8k": {"name": "main"}, "HuggingFaceTB/smoltalk": {"name": "all"}}
"""The configuration that is meant where a data set has several."""


class HFSourceConfig(SourceConfig):
    name_or_path: str = key(
        affects_rows=False,  # what stands under that name does
        doc="Name on the hub, folder that save_to_disk wrote, or JSONL, JSON, Parquet or CSV files: a path, an address "
        "such as s3://bucket/rows.jsonl, or a glob of either.",
    )
    kwargs: dict[str, Any] = key(
        factory=dict,
        doc="Arguments of datasets.load_dataset, such as name or revision; of CSV files the delimiter; of an address "
        "the storage_options.",
    )
    split_mapping: dict[str, str] = key(factory=dict, doc="What the data set calls a split: {train: train_sft}.")


class HFDataSource(DataSource):
    """Rows as they are."""

    name: ClassVar[str] = "huggingface"
    config: HFSourceConfig
    known_splits: ClassVar[dict[str, dict[str, str]]] = KNOWN_SPLITS

    def load(self, config: HFSourceConfig, split: str) -> Rows:  # type: ignore[override]
        """The rows of a split.

        Raises:
            DataError: there is no such data, no such split, a file cannot be read, or none of its first rows can.
        """
        rows = self._rows(config, split)
        reader = self.reader(columnar=not isinstance(rows, NumberedRows)) if config.process else None
        if reader is None:
            return rows
        if not isinstance(rows, NumberedRows):
            part = any(sign in split for sign in "[+")  # rows are numbered in what was asked for
            rows = TableRows(rows, f"{config.name_or_path}:{split}" if part else config.name_or_path)
        return _probed(ReadRows(rows, reader))

    def stream(self, config: HFSourceConfig, split: str) -> RowStream:  # type: ignore[override]
        """The rows of a split, of JSON lines, Parquet and hub names without a copy of them; others are loaded.

        Raises:
            DataError: as of ``load``; or what is not on this machine is asked for rows that its end is needed to tell.
        """
        loads_otherwise = type(self).load is not HFDataSource.load
        stream = None if loads_otherwise else self._stream(config, self._split(config, split))
        if stream is None:
            return LoadedStream(self.load(config, split))
        reader = self.reader(columnar=not isinstance(stream, LineStream)) if config.process else None
        _, start, stop = first_rows(self._split(config, split)) or ("", 0, None)
        if (start, stop) != (0, None):
            stream = SlicedStream(stream, start, stop)
        return stream if reader is None else _probed_stream(ReadStream(stream, reader))

    def reader(self, *, columnar: bool) -> Reader | None:
        """What rows are made into, by one function for each; None to leave them as they are.

        Args:
            columnar: whether the rows are those of a table, where each has all fields.
        """
        return None

    def fingerprint(self) -> str | None:
        """sha256 over the content of files, or a hub name's commit, and what the recipe asks of them."""
        parts = self.fingerprint_parts()
        if parts is None:
            return None
        shared = {info.name for info in keys_of(SourceConfig)} - {"process"}
        text = json.dumps([self.name, parts, options_of(self.config, shared)], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def fingerprint_parts(self) -> dict[str, str] | None:
        """Content, and the split and the arguments with which it is read; the name it has there is not among them."""
        content = self._content()
        if content is None:
            return None
        kwargs = without_secrets(self._kwargs(self.config))
        kwargs.pop("storage_options", None)  # opens a door as well
        return {
            "content": content,
            "split": self._split(self.config, self.config.split),
            "kwargs": json.dumps(kwargs, sort_keys=True, default=str),
        }

    def _content(self) -> str | None:
        files = self._files(self.config)
        if files:
            return content_hash(files)
        folder = self._folder(self.config)
        if folder is not None:
            return folder_hash(folder)
        revision = str(self._kwargs(self.config).get("revision") or "")
        return f"{self.config.name_or_path}@{revision}" if re.fullmatch(r"[0-9a-f]{40}", revision) else None

    def _rows(self, config: HFSourceConfig, split: str) -> Rows:
        files = self._files(config)
        split = self._split(config, split)
        if files:
            _check_file_split(split, config)
            rows = read_files(files, self._kwargs(config), self.run.say)
            return take(dict.fromkeys(split_names(split), rows), split, config.name_or_path)
        folder = self._folder(config)
        if folder is not None and is_saved(folder):
            return load_saved(folder, split, config.name_or_path, config.kwargs)
        return load_named(str(folder or config.name_or_path), split, config.name_or_path, self._kwargs(config))

    def _stream(self, config: HFSourceConfig, split: str) -> RowStream | None:
        """A stream of a split from its beginning, whatever its slice; None where rows have to be loaded."""
        files = self._files(config)
        folder = None if files else self._folder(config)
        is_here = bool(folder) or (bool(files) and files[0].system is None)
        if is_saved(folder):
            return None
        part = first_rows(split)
        if part is None:
            if is_here:
                return None
            raise DataError(
                f"{split!r} cannot be told before all rows are read",
                where=config.name_or_path,
                remedy="count rows from the beginning of one split, as in train[:10000], or do not stream this source",
            )
        source, kwargs = config.name_or_path, self._kwargs(config)
        if not files:
            load = partial(load_named, str(folder or source), part[0], source, kwargs, streaming=True)
            return LibraryStream(load, source, partial(reading, source))
        _check_file_split(split, config)
        streams = {"jsonl": LineStream, "parquet": ParquetStream}
        stream = streams.get(format_of_all(files, kwargs))
        return stream(files) if stream else None

    def _files(self, config: HFSourceConfig) -> list[DataFile]:
        name = _path_or_address(config)
        if is_address(name):
            return find_remote_files(name, config.kwargs.get("storage_options") or {})
        files = find_files(name, search_folders(self.run))
        path = Path(name.lower())
        known = {path.suffix, Path(path.stem).suffix} & set(FORMATS)
        if not files and (known or any(sign in name for sign in "*?")):
            places = " or ".join(str(folder) for folder in search_folders(self.run))
            raise DataError(
                f"there is no file {name}",
                remedy=f"correct the path; a relative one starts in {places}",
            )
        return files

    def _folder(self, config: HFSourceConfig) -> Path | None:
        path = local_path(config.name_or_path, self.run, refused)
        return path if path is not None and path.is_dir() else None

    def _split(self, config: HFSourceConfig, split: str) -> str:
        known = self.known_splits.get(config.name_or_path, {})
        return map_split(split or "train", {**known, **config.split_mapping})

    def _kwargs(self, config: HFSourceConfig) -> dict[str, Any]:
        """Arguments for reading the rows, once the files are found."""
        kwargs = {**KNOWN_KWARGS.get(config.name_or_path, {}), **config.kwargs}
        if is_address(_path_or_address(config)):
            kwargs.pop("storage_options", None)
        return kwargs


class HFMessagesSourceConfig(HFSourceConfig):
    content_key: str | None = key(
        None, doc="Field of a message that holds its text; content, value or text by default."
    )


class HFMessagesDataSource(HFDataSource):
    """What the sources have in common whose rows hold messages."""

    config: HFMessagesSourceConfig

    def message_reader(self, *, columnar: bool) -> MessageReader:
        """What reads the messages of a row, by the recipe's ``content_key`` and what the chat template can write."""
        return MessageReader(self.config.content_key, tool_calls=self._template_has_tool_calls(), columnar=columnar)

    def _template_has_tool_calls(self) -> bool:
        """A template that does not know calls would drop them without a word, so they are given to it as text."""
        template = getattr(getattr(self.trainer, "tokenizer", None), "chat_template", None)
        return not isinstance(template, str) or "tool_calls" in template


class HFInstructSourceConfig(HFMessagesSourceConfig):
    role_mapping: dict[str, str] = key(
        factory=dict,
        doc="Role -> column, or column.field.value for the messages of a list whose field has that value: "
        "{user: question, assistant: answer}, {user: turns.from.human, assistant: turns.from.gpt}. "
        "Formats that are known need none.",
    )
    format: ChatFormat | None = key(
        None,
        doc="Format of the rows, whose columns are then looked at alone; that of each row is known by its columns when "
        "this is not given. preference trains on the prompt and the chosen answer of preference pairs.",
    )

    def check(self) -> Iterator[tuple[str, str]]:
        yield from super().check()
        for role, path in self.role_mapping.items():
            if not all(path.split(".")):
                yield "role_mapping", f"expected column or column.field.value for {role!r}, found {path!r}"
        if self.role_mapping and self.format is not None:
            yield "format", "contradicts role_mapping, which says itself where the messages are: give one of them"


class HFInstructDataSource(HFMessagesDataSource):
    """Chats: rows with ``messages``, each with every role and in its original order."""

    name = "huggingface_instruct"
    config: HFInstructSourceConfig
    known_splits = {**KNOWN_SPLITS, **KNOWN_CHAT_SPLITS}

    def reader(self, *, columnar: bool) -> Reader:
        messages = self.message_reader(columnar=columnar)
        if self.config.format == "preference":
            return PreferenceReader(messages).chosen_chat
        return ChatReader(messages, self.config.role_mapping, self.config.format)


def _probed(rows: ReadRows) -> ReadRows:
    """The rows, if one of the first can be used."""
    _check_first(row for row, _ in LoadedStream(rows).read(PROBED_ROWS))
    return rows


def _probed_stream(stream: RowStream) -> RowStream:
    """The stream, again at its beginning, if one of its first rows can be used."""
    beginning = stream.position()
    _check_first(row for row, _ in stream.read(PROBED_ROWS))
    stream.seek(beginning)
    return stream


def _check_first(rows: Iterable[Any]) -> None:
    faults = []
    for row in rows:
        if not isinstance(row, BadRow):
            return
        faults.append(row)
    if not faults:
        return
    categories = [fault.category for fault in faults]
    told = faults[categories.index(max(categories, key=categories.count))]
    also = f"; none of the first {len(faults)} rows can be used" if len(faults) > 1 else ""
    raise DataError(told.message + also, where=told.where, remedy=told.remedy) from told


def _check_file_split(split: str, config: HFSourceConfig) -> None:
    """All rows of files are one split; another name, taken for it, would train on what was to be held out."""
    known = FILE_SPLITS[:1] if "sources" in config.section_path else FILE_SPLITS
    for name in split_names(split):
        if name not in known:
            raise DataError(
                f"there is no split {name!r}; all rows of a file are its split 'train'",
                where=config.name_or_path,
                remedy=f"leave the split out, slice it as in train[:90%], or map it: split_mapping: {{{name}: train}}",
            )


def _path_or_address(config: HFSourceConfig) -> str:
    return config.name_or_path.removeprefix("file://")
