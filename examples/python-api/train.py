"""The story of `custom-trainer` without a recipe file: the recipe is a dict, and Python starts the training.

Needs: the quickstart's files beside this folder; no network, no GPU, under a minute on two cores.
Run from the repository's root:    python examples/python-api/train.py
Override any key, for example:     python examples/python-api/train.py optimizer.lr=3e-4
"""

import sys
from pathlib import Path

from arctic_training import SFTTrainer, get_config, register
from arctic_training.model import HFModelFactory

HERE = Path(__file__).resolve().parent
QUICKSTART = HERE.parent / "quickstart"


class CustomModelFactory(HFModelFactory):
    name = "my_custom_model_factory"

    def create_model(self, config):
        model = super().create_model(config)
        model.lm_head.weight.data.mul_(0.5)  # flatter first predictions
        return model


@register
class CustomTrainer(SFTTrainer):
    name = "my_custom_trainer"
    model_factory: CustomModelFactory

    def loss(self, batch):
        import torch.nn.functional as F

        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        logits = self.model(**inputs, use_cache=False).logits[:, :-1].float()
        return F.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), label_smoothing=0.1)


if __name__ == "__main__":
    config_dict = {
        "type": "my_custom_trainer",
        "model": {
            "name_or_path": str(QUICKSTART / "model"),
            "init": "random",
            "dtype": "fp32",
            "disable_activation_checkpoint": True,
        },
        "data": {
            "sources": [{"name_or_path": str(QUICKSTART / "data/train.jsonl"), "sample_count": 1000}],
            "max_length": 256,
            "pack_samples": True,
            "num_proc": 1,
            "dl_num_workers": 0,
        },
        "optimizer": {"type": "adamw", "learning_rate": 1e-3},
        "micro_batch_size": 4,
        "train_iters": 40,
        "checkpoint": [{"type": "huggingface", "save_end_of_training": True, "output_dir": str(HERE / "output")}],
    }
    config = get_config(config_dict, sys.argv[1:])
    trainer = CustomTrainer(config)
    trainer.train()
