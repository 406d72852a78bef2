"""Chats as token ids and labels: what a chat template writes, and which of it the assistant said."""
