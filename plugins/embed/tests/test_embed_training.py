"""A step of the trainer against one pass over all texts, what is refused, and what is exported."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from arctic_embed.contrast import contrast
from arctic_huggingface.export import command
from arctic_training.errors import DataError, RecipeError

ROWS = [
    {"query": "what runs?", "positive": "the river runs", "negatives": ["the town sleeps"]},
    {"query": "what falls?", "positive": "snow falls on the old town", "negatives": []},
    {"query": "what sleeps?", "positive": "the town sleeps", "negatives": "a short one"},
    {"query": "what ends?", "positive": "the winter, at last", "negatives": None},
]


def with_rows(recipe, path, **keys):
    return recipe | {"data": recipe["data"] | {"sources": [str(path)]} | keys}


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_a_step_in_micro_batches_has_loss_and_gradient_of_one_pass_over_texts_one_by_one(
    build_run, embed_recipe, write_pairs, tiny_bert, pooling
):
    import torch
    from transformers import AutoModel, AutoTokenizer

    recipe = with_rows(embed_recipe, write_pairs(ROWS), query_prefix="ask: ", document_prefix="text: ", max_length=64)
    recipe |= {"micro_batch_size": 1, "gradient_accumulation_steps": 4, "temperature": 0.2}
    recipe["model"] = recipe["model"] | {"pooling": pooling, "disable_activation_checkpoint": True}
    model, tokenizer = AutoModel.from_pretrained(tiny_bert).double(), AutoTokenizer.from_pretrained(tiny_bert)
    vectors, numbers, keys = [], [], []
    for row in ROWS:
        negatives = row["negatives"] or []
        negatives = [negatives] if isinstance(negatives, str) else negatives
        for number, text in enumerate([row["query"], row["positive"], *negatives], 1):
            ids = tokenizer(("ask: " if number == 1 else "text: ") + text, return_tensors="pt")["input_ids"]
            states = model(input_ids=ids).last_hidden_state[0]
            vectors.append({"mean": states.mean(0), "cls": states[0], "last": states[-1]}[pooling])
            numbers.append(number)
            keys.append(hash(text))
    with build_run(recipe) as run:
        rows = contrast(torch.stack(vectors), torch.tensor(numbers), torch.tensor(keys), range(4), run.config)
        expected = rows[:, 0].mean()
        expected.backward()
        trainer = run.trainer
        step = next(trainer.train_dataloader.epoch(0))
        trainer.before_losses(step)
        total = 0.0
        for batch in step:
            loss = trainer.normalised_loss(batch, 4.0)
            loss.backward()
            total += loss.item()
        gradients = {name: parameter.grad for name, parameter in trainer.model_unwrapped.named_parameters()}
    assert total == pytest.approx(expected.item(), rel=1e-6)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name].double(), parameter.grad, rtol=1e-4, atol=1e-6)
        else:
            assert gradients[name] is None
            assert name.startswith("pooler.")


def test_dropout_is_that_of_the_first_pass_and_a_run_goes_on_exactly(run_recipe, embed_recipe, dropping_bert):
    recipe = embed_recipe | {"train_iters": 4, "gradient_accumulation_steps": 2}
    recipe["model"] = recipe["model"] | {"name_or_path": str(dropping_bert)}
    keep = {"output_dir": "checkpoints", "auto_resume": True, "save_every_n_steps": 2}
    whole = run_recipe(recipe)
    first = run_recipe(recipe | {"checkpoint": keep, "exit_iteration_this_run": 2})
    second = run_recipe(recipe | {"checkpoint": keep})
    assert second.first_step == 2
    losses = [[line["loss"] for line in run.metrics if line["kind"] == "train"] for run in (whole, first, second)]
    assert losses[1] + losses[2] == losses[0]


def test_evaluation_ranks_each_query_among_the_documents_of_the_whole_set(run_recipe, embed_recipe):
    sources = embed_recipe["data"]["sources"]
    recipe = embed_recipe | {"data": embed_recipe["data"] | {"eval_sources": sources}, "train_iters": 1}
    recipe |= {"eval_interval": 1, "evaluate_at_start": True, "gradient_accumulation_steps": 1}
    records = []
    for size in (2, 12):
        run = run_recipe(recipe | {"micro_batch_size": size})
        records.append(next(line for line in run.metrics if line["kind"] == "eval"))
    for name in ("loss", "recall@1", "recall@10", "mrr", "negatives"):
        assert records[0][name] == pytest.approx(records[1][name], rel=1e-5)
    assert records[0]["rows"] == 24
    assert records[0]["negatives"] == pytest.approx(24 + 24 - 1, abs=2)  # some texts are equal


@pytest.mark.parametrize(
    ("row", "message", "count"),
    [
        ({"query": " ", "positive": "a town"}, "an empty text in 'query'", "missing text"),
        ({"query": "where?", "positive": ""}, "an empty text in 'positive'", "missing text"),
        ({"query": "where?", "positive": None}, "nothing in 'positive'", "missing text"),
        ({"query": "where?"}, "(?s)no column 'positive'.*column_mapping", "missing column"),
        ({"query": "where?", "positive": 7}, "not text", "wrong type"),
        (
            {"query": "where?", "positive": "a town", "negatives": ["a sea", "a town"]},
            "the positive text in 'negatives' too",
            "negative equal to the positive",
        ),
        ({"query": "where?", "positive": "a town", "negatives": [""]}, "an empty text in 'negatives'", "missing text"),
    ],
)
def test_a_row_that_teaches_nothing_is_refused_or_counted(
    run_recipe, build_run, embed_recipe, write_pairs, row, message, count
):
    recipe = with_rows(embed_recipe, write_pairs([*ROWS, row]))
    with pytest.raises(DataError, match=message) as caught:
        run_recipe(recipe)
    assert ":5" in str(caught.value)
    with build_run(recipe, "data.on_bad_row=skip", "data.max_bad_fraction=0.5") as run:
        assert run.rows["train"].facts["counts"][f"rows refused, {count}"] == 1


def test_a_text_that_is_too_long_is_an_error_where_the_recipe_says_so(run_recipe, embed_recipe, write_pairs):
    recipe = with_rows(embed_recipe, write_pairs(ROWS), over_long="error", max_length=20)
    with pytest.raises(DataError, match="a text has 28 tokens, and max_length is 20"):
        run_recipe(recipe)


def test_a_step_without_any_negative_is_refused(run_recipe, embed_recipe, write_pairs):
    rows = [{"query": f"{number}?", "positive": "always this"} for number in range(8)]
    with pytest.raises(DataError, match="4 rows of a step or evaluation: one document for all of them"):
        run_recipe(with_rows(embed_recipe, write_pairs(rows)))
    with pytest.raises(DataError, match="1 row of a step or evaluation: one document"):
        run_recipe(with_rows(embed_recipe, write_pairs(ROWS[1::2])) | {"micro_batch_size": 1})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"matryoshka_dims": [64]}, "the embeddings of this model have 32 units"),
        ({"matryoshka_dims": [8, 8]}, "names a number twice"),
        ({"matryoshka_dims": [8], "matryoshka_weights": [1.0, 2.0]}, "expected 1 weights"),
        ({"temperature": 0}, "temperature"),
        ({"data.pack_samples": True}, "would see the other texts of a pack"),
        ({"data.filter_samples": True}, "say it with over_long"),
        ({"data.over_long": "split"}, "over_long"),
    ],
)
def test_keys_that_contradict_the_model_or_each_other_are_refused(run_recipe, embed_recipe, change, message):
    recipe = {**embed_recipe, "data": dict(embed_recipe["data"])}
    for name, value in change.items():
        section, _, entry = name.rpartition(".")
        (recipe[section] if section else recipe)[entry] = value
    with pytest.raises(RecipeError, match=message):
        run_recipe(recipe)


LOADED_BY_SENTENCE_TRANSFORMERS = """
import json, sys
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[1], device="cpu")
texts = json.load(sys.stdin)
queries = model.encode(texts, prompt_name="query", batch_size=2)
print("embeddings", json.dumps([model.max_seq_length, queries.tolist()]))
"""


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_an_export_says_what_makes_its_embeddings(run_recipe, embed_recipe, pooling):
    from transformers import AutoModel

    _, folder = exported(run_recipe, embed_recipe, pooling)
    modules = json.loads((folder / "modules.json").read_text())
    assert [module["type"].rpartition(".")[2] for module in modules] == ["Transformer", "Pooling", "Normalize"]
    pooled_by = json.loads((folder / "1_Pooling/config.json").read_text())
    assert pooled_by["word_embedding_dimension"] == 32
    modes = {"mean": "mean_tokens", "cls": "cls_token", "last": "lasttoken"}
    assert [name for name, on in pooled_by.items() if on is True and name.startswith("pooling_mode")] == [
        f"pooling_mode_{modes[pooling]}"
    ]
    assert type(AutoModel.from_pretrained(folder)).__name__ == "BertModel"
    assert "pipeline_tag: feature-extraction" in (folder / "README.md").read_text()


def test_a_checkpoint_to_go_on_from_is_exported_with_the_same_files(run_recipe, embed_recipe, tmp_path):
    run_recipe(embed_recipe | {"train_iters": 1, "checkpoint": [{"output_dir": "kept", "save_end_of_training": True}]})
    done = CliRunner().invoke(command, ["kept", str(tmp_path / "out")], obj=SimpleNamespace(block=(), trust=False))
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out/modules.json").is_file()
    assert (tmp_path / "out/1_Pooling/config.json").is_file()


@pytest.mark.peers
@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_sentence_transformers_makes_the_same_embeddings_of_an_export(run_recipe, embed_recipe, pooling):
    import torch
    from torch.nn.functional import normalize

    if "ARCTIC_SENTENCE_TRANSFORMERS_PYTHON" not in os.environ:
        pytest.skip("ARCTIC_SENTENCE_TRANSFORMERS_PYTHON names no interpreter with it: run nox -s peers")
    run, folder = exported(run_recipe, embed_recipe, pooling)
    texts = ["a town", "what runs to the sea?", "x" * 100]
    theirs = [os.environ["ARCTIC_SENTENCE_TRANSFORMERS_PYTHON"], "-c", LOADED_BY_SENTENCE_TRANSFORMERS, str(folder)]
    done = subprocess.run(theirs, input=json.dumps(texts), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    longest, theirs = json.loads(done.stdout.rpartition("embeddings")[2])
    assert longest == 32
    factory, trainer = run.component("data"), run.trainer
    encoded = factory.encoder()([{"query": text, "positive": "p"} for text in texts], ["", "", ""])
    ends = encoded.lengths.cumsum()
    rows = [
        {name: values[end - length : end] for name, values in encoded.columns.items()}
        for length, end in zip(encoded.lengths, ends, strict=True)
    ]
    batch = factory.collate(rows)
    batch.pop("columns")
    trainer.model_unwrapped.eval()
    with torch.no_grad():
        ours = normalize(trainer.embed(batch)[0::2], dim=-1)
    torch.testing.assert_close(torch.tensor(theirs), ours, rtol=0, atol=1e-5)


def exported(run_recipe, recipe, pooling):
    """A run, and the folder that it exported."""
    checkpoint = [{"type": "huggingface", "output_dir": "exported", "save_end_of_training": True}]
    recipe = recipe | {"model": recipe["model"] | {"pooling": pooling}, "train_iters": 1, "checkpoint": checkpoint}
    recipe["data"] = recipe["data"] | {"query_prefix": "query: "}
    return run_recipe(recipe), Path("exported/global_step_1").absolute()
