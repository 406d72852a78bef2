"""Prepares chats with TRL's SFTTrainer, for `data_preparation.py`; runs in an environment that has `trl`."""

from __future__ import annotations

import json
import sys
import time


def main(chats_path: str, model_path: str, folder: str, num_proc: str, max_length: str) -> None:
    from datasets import load_dataset
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    seconds = []

    class TimedTrainer(SFTTrainer):
        """Its constructor prepares the data by this method; a release that renames it leaves nothing to measure."""

        def _prepare_dataset(self, *arguments, **options):
            started = time.perf_counter()
            prepared = super()._prepare_dataset(*arguments, **options)
            seconds.append(time.perf_counter() - started)
            return prepared

    config = SFTConfig(
        output_dir=f"{folder}/output",
        max_length=int(max_length),
        packing=True,
        assistant_only_loss=True,
        dataset_num_proc=int(num_proc),
        use_cpu=True,
        bf16=False,
        report_to="none",
    )
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model_path))
    started = time.perf_counter()
    rows = load_dataset("json", data_files=chats_path, split="train")
    seconds.append(time.perf_counter() - started)
    trainer = TimedTrainer(model, config, train_dataset=rows, processing_class=tokenizer)
    if len(seconds) != 2:
        sys.exit("this release of TRL does not prepare its training data by SFTTrainer._prepare_dataset")
    lengths = trainer.train_dataset.data.column("input_ids").combine_chunks().value_lengths().to_numpy()
    fill = lengths.sum() / (len(lengths) * int(max_length))
    print(json.dumps({"seconds": sum(seconds), "packs": len(lengths), "fill": fill}))


if __name__ == "__main__":
    main(*sys.argv[1:])
