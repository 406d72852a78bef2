"""Prints the loss that TRL's RewardTrainer gives for a batch; run by the interpreter of an environment that has TRL."""

import sys

import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer

model, batch, out = sys.argv[1:]
rows = Dataset.from_list([{"chosen": "a b", "rejected": "a c"}] * 2)
config = RewardConfig(
    output_dir=out,
    report_to=[],
    use_cpu=True,
    bf16=False,
    center_rewards_coefficient=0.01,
    max_length=None,
    gradient_checkpointing=False,
)
trainer = RewardTrainer(
    model=AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32),
    args=config,
    train_dataset=rows,
    processing_class=AutoTokenizer.from_pretrained(model),
)
with torch.no_grad():
    print("loss", trainer.compute_loss(trainer.model, torch.load(batch)).item())
