"""Optimizers besides AdamW: ``adafactor``, ``muon``, ``schedule_free`` and ``adamw_8bit``."""
