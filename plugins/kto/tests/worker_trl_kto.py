"""Prints the loss that TRL's KTOTrainer gives for a batch; run by the interpreter of an environment that has TRL."""

import sys

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import KTOConfig, KTOTrainer

model, reference, batch, out = sys.argv[1:]
row = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
rows = Dataset.from_list([{"prompt": [row[0]], "completion": [row[1]], "label": label} for label in (True, False)] * 2)
config = KTOConfig(
    output_dir=out,
    report_to=[],
    use_cpu=True,
    bf16=False,
    beta=0.5,
    desirable_weight=1.0,
    undesirable_weight=1.5,
    max_length=None,
    gradient_checkpointing=False,
    per_device_train_batch_size=2,
)
trainer = KTOTrainer(
    model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
    ref_model=AutoModelForCausalLM.from_pretrained(reference, dtype=torch.float32),
    args=config,
    train_dataset=rows,
    processing_class=AutoTokenizer.from_pretrained(model),
)
with torch.no_grad():
    print("loss", trainer._compute_loss(trainer.model, torch.load(batch), return_outputs=False).item())
