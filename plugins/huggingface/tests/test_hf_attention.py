"""Documents of a pack do not see each other, and a model that lets them is refused by name before training."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from arctic_huggingface.attention import check_packing
from arctic_training.errors import RecipeError

PACK = {"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "position_ids": [0, 1, 2]}


@pytest.fixture
def trainer(tiny_config):
    def trainer(attention="sdpa", precision="fp32", rows=(PACK,), micro_batch_size=2, change=lambda model: model):
        import torch
        from transformers import AutoModelForCausalLM

        torch.manual_seed(0)
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        model = AutoModelForCausalLM.from_config(tiny_config(), dtype=dtype, attn_implementation=attention)
        return SimpleNamespace(
            run=SimpleNamespace(config=SimpleNamespace(recipe=None)),
            config=SimpleNamespace(micro_batch_size=micro_batch_size, model=SimpleNamespace(precision=precision)),
            train_dataloader=SimpleNamespace(rows=list(rows)),
            model=change(model.train()),
            model_unwrapped=model,
            device=torch.device("cpu"),
        )

    return trainer


def leaking(model):
    """The same model with the mask that a collator for padded rows would give: it joins the documents."""
    forward = model.forward

    def with_mask(input_ids, **arguments):
        return forward(input_ids=input_ids, attention_mask=input_ids.new_ones(input_ids.shape), **arguments)

    model.forward = with_mask
    return model


def blind(model):
    """The same model without a look at positions."""
    forward = model.forward
    model.forward = lambda position_ids, **arguments: forward(**arguments)
    return model


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("micro_batch_size", [1, 2])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_attention_that_keeps_documents_apart_passes(trainer, attention, micro_batch_size, precision):
    check_packing(trainer(attention, precision, micro_batch_size=micro_batch_size))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("change", [leaking, blind])
def test_a_model_that_joins_documents_is_refused_by_the_name_of_its_attention(trainer, attention, precision, change):
    with pytest.raises(RecipeError, match=f"attn_implementation '{attention}' with LlamaForCausalLM") as caught:
        check_packing(trainer(attention, precision, change=change))
    assert "pack_samples: false" in str(caught.value)


def test_a_model_that_joins_documents_only_in_larger_batches_is_refused(trainer):
    def leaking_in_batches(model):
        apart, joined = model.forward, leaking(model).forward
        model.forward = lambda input_ids, **arguments: (joined if len(input_ids) > 1 else apart)(input_ids, **arguments)
        return model

    check_packing(trainer(change=leaking_in_batches, micro_batch_size=1))
    with pytest.raises(RecipeError, match="see each other"):
        check_packing(trainer(change=leaking_in_batches, micro_batch_size=8))


def test_a_model_that_cannot_run_packs_is_refused(trainer):
    def failing(model):
        model.forward = lambda **arguments: 1 / 0
        return model

    with pytest.raises(RecipeError, match="'sdpa' with LlamaForCausalLM cannot run packs here: ZeroDivisionError"):
        check_packing(trainer(change=failing))


def test_rows_that_are_no_packs_are_not_tried(trainer):
    row = {name: PACK[name] for name in ("input_ids", "labels")}
    check_packing(trainer(rows=[row], change=leaking))
    check_packing(trainer(rows=[], change=leaking))


def test_the_check_leaves_random_numbers_modes_and_gradients_as_they_were(trainer):
    import torch

    tried = trainer()
    tried.model.model.layers[0].eval()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    check_packing(tried)
    assert torch.equal(torch.rand(4), expected)
    assert tried.model.training
    assert not tried.model.model.layers[0].training
    assert tried.model.model.layers[1].training
    assert all(parameter.grad is None for parameter in tried.model.parameters())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_logits_of_each_document_in_a_pack_are_those_of_the_document_alone(tiny_config, attention):
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(), attn_implementation=attention).eval()
    documents = [torch.randint(320, (length,)) for length in (3, 11, 1, 20)]
    positions = torch.cat([torch.arange(len(document)) for document in documents])[None]
    packed = model(torch.cat(documents)[None], position_ids=positions, use_cache=False).logits[0]
    for document, logits in zip(documents, packed.split([len(document) for document in documents]), strict=True):
        assert (model(document[None], use_cache=False).logits[0] - logits).abs().max() < 1e-4
