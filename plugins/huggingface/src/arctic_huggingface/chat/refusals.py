"""Why a chat cannot be trained on, and the words under which such rows are counted, beside those of
``arctic_huggingface.faults``."""

from __future__ import annotations

ROLES_OUT_OF_ORDER = "roles out of order"
NO_CONTENT = "no content"
"""A message without text."""
TEMPLATE_REFUSES = "template refuses"
"""The chat template raises an error."""
CONTENT_LOST = "content lost"
"""The chat template leaves out or changes what a message says."""
HISTORY_REWRITTEN = "history rewritten"
"""The chat template writes an assistant turn differently once more messages follow."""
NO_MASK = "no mask"
"""Which tokens the assistant said cannot be established."""


class UnusableChat(Exception):
    """Why a chat cannot be trained on; whoever knows its row turns this into a ``BadRow``.

    Args:
        reason: what is wrong, in one sentence.
        category: one of those words.
        remedy: what to do about it.
    """

    def __init__(self, reason: str, category: str, remedy: str = "") -> None:
        super().__init__(reason)
        self.category = category
        self.remedy = remedy
