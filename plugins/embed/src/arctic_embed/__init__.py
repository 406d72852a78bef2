"""Contrastive training of text embeddings."""
