"""Focal loss for Arctic."""
