"""Offloading of checkpointed activations: what is moved, that nothing else changes, and where it cannot be."""

from __future__ import annotations

import pytest

from arctic_huggingface.model import HFModelFactory
from arctic_training.errors import RecipeError


def gradients(model):
    import torch

    ids = torch.arange(24).reshape(2, 12)
    model.train()(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.fixture
def build(make, run, model_dir):
    def build(*, offload, **keys):
        run.config.activation_checkpoint_cpu_offload = offload
        factory = make(HFModelFactory, name_or_path=str(model_dir), dtype="fp32", **keys)
        return factory.create_model(factory.create_config())

    return build


def test_gradients_are_the_same_with_activations_in_host_memory_and_only_the_layers_inputs_go_there(build, monkeypatch):
    import torch

    moved = []

    class Watched(torch.autograd.graph.save_on_cpu):
        def __init__(self, **keys):
            super().__init__(**keys)
            pack = self.pack_hook
            self.pack_hook = lambda tensor: moved.append(tuple(tensor.shape)) or pack(tensor)

    expected = gradients(build(offload=False))
    monkeypatch.setattr(torch.autograd.graph, "save_on_cpu", Watched)
    found = gradients(build(offload=True))
    assert moved == [(2, 12, 32)] * 2  # rows, tokens, hidden units of two layers
    assert all(found[name].equal(expected[name]) for name in expected)


def test_offloading_without_checkpointing_is_a_contradiction(run_recipe, model_dir):
    recipe = {
        "type": "tiny",
        "model": {"type": "huggingface", "name_or_path": str(model_dir), "disable_activation_checkpoint": True},
        "data": {"sources": [{"type": "tiny"}]},
        "skip_validation": True,
        "activation_checkpoint_cpu_offload": True,
    }
    with pytest.raises(RecipeError, match="activation_checkpoint_cpu_offload: needs activation checkpointing"):
        run_recipe(recipe)


def test_a_model_without_checkpointing_has_nothing_to_offload(build, monkeypatch):
    from transformers import LlamaForCausalLM

    monkeypatch.setattr(LlamaForCausalLM, "supports_gradient_checkpointing", False)
    with pytest.raises(RecipeError, match="LlamaForCausalLM cannot recompute activations"):
        build(offload=True)


@pytest.mark.gpu
def test_offloaded_activations_leave_the_accelerator(make, run, model_dir):
    import torch

    def kept_for_backward(offload):
        run.config.activation_checkpoint_cpu_offload = offload
        sizes = {"num_hidden_layers": 16, "hidden_size": 512}
        factory = make(HFModelFactory, name_or_path=str(model_dir), dtype="fp32", init="random", hf_config_kwargs=sizes)
        model = factory.create_model(factory.create_config()).to("cuda").train()
        ids = torch.zeros(8, 128, dtype=torch.long, device="cuda")
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        loss = model(input_ids=ids, use_cache=False).logits.sum()
        kept = torch.cuda.memory_allocated() - before
        loss.backward()
        return kept

    run.device = torch.device("cuda")
    inputs = 16 * 8 * 128 * 512 * 4
    assert kept_for_backward(False) - kept_for_backward(True) > inputs / 2
