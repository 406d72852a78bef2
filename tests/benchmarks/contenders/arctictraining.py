"""Prepares chats with ArcticTraining's process-data, for `data_preparation.py`; runs in an environment that has it.

Its import name is that of Arctic's core, so the two can never share an environment.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time


def main(chats_path: str, model_path: str, folder: str, num_proc: str, max_length: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update(alone)
    import deepspeed.ops

    # Joining its process group would compile an operator for half a minute that data preparation never uses.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    from arctic_training.config.trainer import get_config
    from arctic_training.data.factory import DataFactory
    from arctic_training.registry import get_registered_trainer

    seconds = []
    prepare = DataFactory.__call__

    def timed(factory):
        started = time.perf_counter()
        loaders = prepare(factory)
        seconds.append(time.perf_counter() - started)
        return loaders

    DataFactory.__call__ = timed
    source = {
        "type": "huggingface_instruct",
        "name_or_path": "json",
        "kwargs": {"data_files": chats_path},
        "role_mapping": {"user": "messages.role.user", "assistant": "messages.role.assistant"},
    }
    config = get_config(
        {
            "type": "sft",
            "micro_batch_size": 1,
            "model": {"name_or_path": model_path, "dtype": "fp32"},
            "data": {
                "sources": [source],
                "cache_dir": f"{folder}/cache",
                "max_length": int(max_length),
                "mask_inputs": True,
                "pack_samples": True,
                "num_proc": int(num_proc),
            },
        }
    )
    trainer = get_registered_trainer(name=config.type)(config, mode="process-data")
    rows = trainer.train_dataloader.dataset
    lengths = rows.data.column("input_ids").combine_chunks().value_lengths().to_numpy()
    fill = lengths.sum() / (len(lengths) * int(max_length))
    print(json.dumps({"seconds": sum(seconds), "packs": len(lengths), "fill": fill}))


if __name__ == "__main__":
    main(*sys.argv[1:])
