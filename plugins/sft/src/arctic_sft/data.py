"""Data of supervised fine-tuning: chats become rows of ids and labels, as for every objective on chats."""

from __future__ import annotations

from arctic_huggingface.chat.data import ChatDataConfig, ChatDataFactory


class SFTDataConfig(ChatDataConfig):
    """The keys that every objective on chats has."""


class SFTDataFactory(ChatDataFactory):
    """Chats with a ``messages`` column to rows, or packs of rows, with labels on what the assistant said."""

    name = "sft"
    config: SFTDataConfig

    def draws(self) -> bool:  # said once more here, since a class speaks for itself alone
        return super().draws()
