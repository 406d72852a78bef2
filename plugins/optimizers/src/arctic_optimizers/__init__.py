"""Optimizers besides AdamW: ``adafactor``, ``muon`` and ``adamw_8bit``."""
