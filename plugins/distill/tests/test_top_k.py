"""What a teacher predicts, stored with prepared rows: what is stored, when it is stored anew, and training from it."""

from __future__ import annotations

import pytest

from arctic_training.errors import RecipeError


def stored(recipe, k=4, **data):
    return recipe | {"data": recipe["data"] | {"teacher_top_k": k} | data}


def train_lines(run):
    return [line for line in run.metrics if line["kind"] == "train"]


def test_each_trained_token_has_the_teachers_likeliest_words_and_all_others_as_one(build_run, distill_recipe):
    import torch
    from transformers import AutoModelForCausalLM

    teacher = AutoModelForCausalLM.from_pretrained(distill_recipe["teacher"]["name_or_path"])
    with build_run(stored(distill_recipe) | {"temperature": 2.0}) as run, torch.no_grad():
        for row in [run.rows["train"][number] for number in (0, 17, 47)]:
            ids, labels = torch.from_numpy(row["input_ids"]).long(), torch.from_numpy(row["labels"])
            log_p = (teacher(ids[None]).logits[0].double() / 2.0).log_softmax(-1)
            trained = torch.cat([labels[1:] != -100, torch.tensor([False])])
            found = torch.stack([torch.from_numpy(row[f"teacher_log_p_{place}"]) for place in range(5)], -1)
            words = torch.stack([torch.from_numpy(row[f"teacher_id_{place}"]) for place in range(4)], -1)
            likeliest = log_p.topk(4)
            assert words[trained].tolist() == likeliest.indices[trained].tolist()
            torch.testing.assert_close(found[trained, :4].double(), likeliest.values[trained], rtol=1e-5, atol=1e-5)
            others = 1 - likeliest.values.exp().sum(-1)
            torch.testing.assert_close(found[trained, 4].double().exp(), others[trained], rtol=1e-4, atol=1e-6)
            assert not found[~trained].any()


@pytest.mark.parametrize("packed", [False, True])
def test_training_from_stored_predictions_is_training_from_those_of_the_teacher(run_recipe, distill_recipe, packed):
    """With all words but one stored, the one that is left is no word together with others, and the loss is exact."""
    recipe = distill_recipe | {"train_iters": 3, "temperature": 1.5, "divergence": "jensen_shannon"}
    asked = run_recipe(recipe, f"data.pack_samples={str(packed).lower()}")
    kept = run_recipe(stored(recipe, 259, pack_samples=packed))
    for one, other in zip(train_lines(asked), train_lines(kept), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-3)
        assert other["distillation/agreement"] == one["distillation/agreement"]


def test_training_from_stored_predictions_loads_no_teacher(build_run, distill_recipe, hook_recorder):
    recipe = stored(distill_recipe)
    with build_run(recipe) as run:
        assert run.trainer.teacher is None
        assert hook_recorder.names.count("arctic_build_model") == 2  # the teacher while preparing, and the student
    with build_run(recipe) as run:
        assert hook_recorder.names.count("arctic_build_model") == 3


def test_rows_are_prepared_anew_for_another_teacher_temperature_or_number_of_words(build_run, distill_recipe):
    import shutil

    from transformers import AutoModelForCausalLM

    def key(recipe):
        with build_run(recipe) as run:
            return run.data_facts["train"]["cache"]

    recipe = stored(distill_recipe)
    keys = [key(recipe), key(recipe | {"temperature": 2.0}), key(stored(distill_recipe, 5)), key(distill_recipe)]
    path = distill_recipe["teacher"]["name_or_path"]
    shutil.copytree(path, f"{path}-moved")
    moved = recipe | {"teacher": recipe["teacher"] | {"name_or_path": f"{path}-moved"}}
    assert key(moved) == keys[0]
    model = AutoModelForCausalLM.from_pretrained(path)
    model.lm_head.weight.data[0, 0] += 1
    model.save_pretrained(path)
    keys.append(key(recipe))
    assert len(set(keys)) == len(keys)
    assert key(distill_recipe) == keys[3]  # a teacher that is asked while training decides nothing about rows


@pytest.mark.parametrize(
    ("keys", "data", "message"),
    [
        ({}, {"streaming": True}, "data.teacher_top_k: is stored with prepared rows"),
        ({}, {"over_long": "split"}, "data.teacher_top_k: is of whole rows"),
        ({}, {"pack_samples": True, "fuse_positions_prob": 0.5}, "data.fuse_positions_prob: makes one text"),
        ({"hidden_layers": [[1, 1]]}, {}, "hidden_layers: needs the teacher's hidden states"),
        ({}, {"teacher_top_k": 260}, "data.teacher_top_k: is 260, and there are 260 words"),
        ({}, {"sources": [{"type": "huggingface", "name_or_path": "x", "process": False}]}, "process: false"),
    ],
)
def test_what_cannot_be_stored_is_refused(run_recipe, distill_recipe, keys, data, message):
    with pytest.raises(RecipeError, match=message):
        run_recipe(
            stored(distill_recipe, **({"k": data.pop("teacher_top_k")} if "teacher_top_k" in data else {}), **data)
            | keys
        )
