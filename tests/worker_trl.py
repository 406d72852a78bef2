"""What TRL's trainers say of the pairs of a folder; runs in TRL's own environment, without Arctic.

Argument: a folder with ``model`` and ``reference``, ``keys.json`` and ``tokens.json`` (for each pair the ids of prompt,
chosen and rejected answer). Writes the loss of all pairs together, by name, to ``trl.json``.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace


def main(home):
    given = json.loads((home / "keys.json").read_text())
    tokens = json.loads((home / "tokens.json").read_text())
    found = {}
    for name, keys in given["keys"].items():
        measure = without_reference if name in ("cpo", "simpo", "orpo") else with_reference
        found[name] = measure(home, name, keys, given["beta"], tokens)
    (home / "trl.json").write_text(json.dumps(found))


def with_reference(home, name, keys, beta, tokens):
    """Of the trainer itself, on a batch of its own collator."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(home / "model"),
        ref_model=AutoModelForCausalLM.from_pretrained(home / "reference"),
        args=DPOConfig(
            output_dir=str(home / "trl"),
            loss_type=["sigmoid_norm" if name == "sigmoid per token" else name],
            beta=beta,
            label_smoothing=keys.get("label_smoothing", 0.0),
            use_cpu=True,
            bf16=False,
            report_to="none",
            gradient_checkpointing=False,
        ),
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}] * 2),
        processing_class=AutoTokenizer.from_pretrained(home / "model"),
    )
    batch = trainer.data_collator(tokens)
    with torch.no_grad():
        return float(trainer.compute_loss(trainer.model.eval(), batch))


def without_reference(home, name, keys, beta, tokens):
    """Of the trainers' loss functions, on log-probabilities that their own code reads off the logits; the likelihood
    of the chosen answer for each pair by itself, where the trainers take it over a whole batch, and of ORPO over the
    prompt as well."""
    import torch
    from transformers import AutoModelForCausalLM
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    model = AutoModelForCausalLM.from_pretrained(home / "model").eval()

    def log_probabilities(answer, average):
        values = []
        for pair in tokens:
            ids = torch.tensor([pair["prompt_ids"] + pair[answer]])
            labels = ids.clone()
            labels[:, : len(pair["prompt_ids"])] = -100
            with torch.no_grad():
                values.append(CPOTrainer.get_batch_logps(model(ids).logits, labels, average_log_prob=average))
        return torch.cat(values)

    answers = [log_probabilities(answer, name != "cpo") for answer in ("chosen_ids", "rejected_ids")]
    likelihood = -log_probabilities("chosen_ids", True).mean()
    trainer = SimpleNamespace(
        alpha=0.0,
        beta=beta,
        loss_type="simpo" if name == "simpo" else "sigmoid",
        label_smoothing=keys.get("label_smoothing", 0.0),
        simpo_gamma=keys.get("simpo_gamma", 0.0),
        accelerator=SimpleNamespace(device=torch.device("cpu")),
    )
    if name == "orpo":
        return float(likelihood - ORPOTrainer.odds_ratio_loss(trainer, *answers)[0].mean())
    loss = CPOTrainer.cpo_loss(trainer, *answers)[0].mean()
    return float(loss + keys["cpo_alpha"] * likelihood) if name == "cpo" else float(loss)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
