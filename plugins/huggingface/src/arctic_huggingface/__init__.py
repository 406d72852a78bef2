"""The Hugging Face libraries as components of Arctic: models, tokenizers, data sources, schedules, exports."""
