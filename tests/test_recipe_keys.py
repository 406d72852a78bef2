"""Every key of the recipe's documentation is accepted, with its default, and means the same as leaving it out."""

from __future__ import annotations

import os
from typing import Any

import pytest

from arctic_training.config import default_value, walk
from arctic_training.errors import RecipeError
from arctic_training.plugins import PluginManager, create_plugin_manager
from arctic_training.preflight import refuse_later_keys
from arctic_training.recipe import load_recipe
from arctic_training.resolve import resolve

REQUIRED = {"model": {"name_or_path": "m"}, "data": {"sources": ["s"]}}

DEFAULTS = """
type: sft
skip_validation: false
epochs: 1
train_iters: 0
micro_batch_size: 1
gradient_accumulation_steps: 1
sequence_parallel_size: 1
expert_parallel_size: 1
arctic_moe: false
enable_arctic_moe_custom_optimization: false
enable_routing_replay: false
activation_checkpoint_cpu_offload: false
tiled_mlp_compute: false
seed: 42
min_iterations: 0
exit_iteration: 0
exit_iteration_this_run: 0
overfit_first_batch: false
eval_interval: 0
eval_log_iter_interval: 1
loss_log_interval: 1
train_log_iter_interval: 1
train_log_metrics_path: train-log-metrics.jsonl
mem_profiler: null
mem_profiler_max_entries: 100000
deepspeed: {}
model:
  type: huggingface
  name_or_path: m
  dtype: bf16
  attn_implementation: sdpa
  disable_activation_checkpoint: false
  peft_config: null
  hf_config_kwargs: {}
  liger: false
  pad_vocabulary_to_multiple_of: 1
  save_name: null
  revision: null
  trust_remote_code: false
tokenizer: {type: huggingface, tokenize_kwargs: {}, added_tokens: [], added_special_tokens: []}
data:
  type: sft
  sources: [s]
  eval_sources: []
  train_eval_split: [1.0, 0.0]
  dl_num_workers: 2
  seed: 42
  use_data_cache: null
  cache_processed_data: null
  cache_fs_type: auto
  fail_on_missing_cache: false
  mask_inputs: true
  ignore_empty_think: false
  filter_samples: true
  pad_to: div_length
  div_length: 256
  pack_samples: false
  always_max_length: false
  drop_last: false
  fuse_positions_prob: 0.0
  repeat_to_pack_max_length: false
optimizer: {type: fused_adam, learning_rate: 5e-4, weight_decay: 0.1, betas: [0.9, 0.999]}
scheduler: {type: huggingface, name: linear, warmup_ratio: 0.1, scheduler_specific_kwargs: {}}
checkpoint: []
logger: {level: WARNING, print_output_ranks: [0], file_output_ranks: "*"}
wandb: {enable: false, entity: null, project: arctic-training, name: null}
plugins: {require: [], block: [], order: []}
"""

GIVEN = """
code: train.py
kill_switch_path: /tmp/at_kill_switch
mem_profiler: step
mem_profiler_dir: profiles
run_dir: out
eval_interval: 5
arctic_moe: auto
model:
  name_or_path: m
  dtype: torch.bfloat16
  peft_config: {peft_type: Lora, r: 8}
  hf_config_kwargs: {num_hidden_layers: 2}
tokenizer: {name_or_path: t, chat_template: "{{ messages }}", tokenize_kwargs: {use_fast: true}}
data:
  sources:
    - HuggingFaceH4/ultrachat_200k:train_sft[:1%]
    - {type: huggingface, name_or_path: n, split: train, sample_ratio: 10%, sample_seed: 42, process: true, kwargs: {}}
    - {type: huggingface_instruct, name_or_path: n, sample_count: 1k, split_mapping: {train: train_sft}}
    - {name_or_path: n, role_mapping: {user: conversations.role.user}, content_key: content}
  eval_sources: [n]
  max_length: 4Ki
  num_proc: 16
  cache_dir: /tmp/
  pad_to: max_length
optimizer: {type: cpu_adam, lr: 1e-5}
loss: {type: cross_entropy}
engine: {type: torch}
checkpoint:
  - {type: deepspeed, output_dir: out, auto_resume: true, save_every_n_steps: 100}
  - {type: huggingface, output_dir: out, enabled: true, save_every_n_epochs: 1, save_end_of_training: true, keep_last:
  3}
logger: {output_dir: logs, level: INFO, print_output_ranks: "*", file_output_ranks: [0]}
wandb: {enable: true, entity: me, project: mine, name: run}
plugins: {require: ["sft>=0.1"], block: [nobody], order: []}
"""


LONG_SEQUENCES = """
type: sft
micro_batch_size: 1
sequence_parallel_size: 8
tiled_mlp_compute: true
activation_checkpoint_cpu_offload: true
model:
  type: liger
  name_or_path: meta-llama/Llama-3.1-8B-Instruct
  attn_implementation: flash_attention_2
data:
  sources: [HuggingFaceH4/ultrachat_200k]
  max_length: 500_000
  pack_samples: true
deepspeed:
  zero_optimization: {stage: 3, offload_optimizer: {device: cpu, pin_memory: true}}
  seq_parallel_communication_data_type: bf16
optimizer: {type: cpu_adam, learning_rate: 1e-5}
"""


@pytest.fixture(scope="module")
def plugins() -> PluginManager:
    return create_plugin_manager()


@pytest.fixture
def config_of(plugins, tmp_path):
    def config_of(text: str) -> Any:
        (tmp_path / "recipe.yaml").write_text(text)
        return resolve(load_recipe(tmp_path / "recipe.yaml"), plugins)

    return config_of


def test_every_key_may_be_given_with_its_default(config_of, plugins):
    config = config_of(DEFAULTS)
    plain = resolve(load_recipe(REQUIRED), plugins)
    assert config == plain
    assert [section.component for section in (config.model, config.data)] == [
        plain.model.component,
        plain.data.component,
    ]


def test_what_depends_on_the_machine_or_on_other_keys_is_left_open(plugins):
    config = resolve(load_recipe(REQUIRED), plugins)
    assert config.data.num_proc == len(os.sched_getaffinity(0))
    assert (config.data.max_length, config.tokenizer.name_or_path, config.kill_switch_path) == (None, None, None)
    assert [source.type for source in config.data.sources] == ["huggingface_instruct"]


def test_deprecated_keys_warn_with_their_line(config_of):
    warnings = config_of(DEFAULTS).warnings
    assert len(warnings) == 2
    assert all("deprecated" in warning and "recipe.yaml:" in warning for warning in warnings)


def test_every_key_may_be_given_with_another_value(config_of, tmp_path):
    (tmp_path / "train.py").write_text("")
    config = config_of(GIVEN)
    first = config.data.sources[0]
    assert (first.name_or_path, first.split) == ("HuggingFaceH4/ultrachat_200k", "train_sft[:1%]")
    assert (config.data.sources[1].sample_ratio, config.data.sources[2].sample_count) == (0.1, 1000)
    assert config.data.eval_sources[0].split == "eval"
    assert (config.data.max_length, config.optimizer.learning_rate) == (4096, 1e-5)
    assert [entry.type for entry in config.checkpoint] == ["deepspeed", "huggingface"]
    assert config.loaded_code.path.name == "train.py"
    random = GIVEN.replace("peft_config: {peft_type: Lora, r: 8}", "init: random")  # which has no use for an adapter
    assert config_of(random).model.init == "random"


def test_keys_whose_feature_comes_later_say_which(config_of, plugins):
    text = DEFAULTS.replace("sequence_parallel_size: 1", "sequence_parallel_size: 2")
    later = {
        ".".join(map(str, path)): info.later
        for path, info, value in walk(config_of(text))
        if info.later and value != info.default
    }
    assert list(later) == ["sequence_parallel_size"]
    assert later["sequence_parallel_size"]


def test_a_recipe_for_long_sequences_validates_and_says_what_a_run_cannot_do_yet(config_of):
    config = config_of(LONG_SEQUENCES)
    asked = {".".join(map(str, path)): info for path, info, value in walk(config) if value != default_value(info)}
    assert [name for name, info in asked.items() if info.later] == ["sequence_parallel_size", "tiled_mlp_compute"]
    assert (config.model.type, config.activation_checkpoint_cpu_offload) == ("liger", True)
    assert config.deepspeed["seq_parallel_communication_data_type"] == "bf16"
    with pytest.raises(RecipeError, match=r"sequence_parallel_size: asks for sequence parallelism"):
        refuse_later_keys(config)


@pytest.mark.parametrize(
    "line",
    [
        "beta: 0.1",
        "label_smoothing: 0.0",
        "ref_model: {name_or_path: m}",
    ]
    + ["data: {max_prompt_length: 4096}", "data: {dpo_prompt_truncation_mode: keep_start}"],
)
def test_keys_and_types_of_plugins_that_come_later_say_which_brings_them(config_of, line):
    with pytest.raises(RecipeError, match=r"arctic-plugin-dpo"):
        config_of(line)
