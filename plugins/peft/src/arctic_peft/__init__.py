"""Adapters for Arctic: `model.peft_config` trains LoRA, DoRA, IA3 and what else peft knows beside a frozen model."""
