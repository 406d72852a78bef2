"""`arctic validate` says whether a recipe is right and what it comes to, without side effects."""

from __future__ import annotations

import json


def test_a_good_recipe_is_said_to_be_valid_with_what_was_chosen_and_who_provides_it(arctic, recipe):
    outcome = arctic("validate", str(recipe))
    assert outcome.code == 0
    lines = [" ".join(line.split()) for line in outcome.out.splitlines()]
    assert lines[0] == f"{recipe}: valid"
    assert "trainer tiny (arctic_training.testing.tiny)" in lines
    assert any(line.startswith("optimizer adamw (arctic-core ") for line in lines)
    assert any(line.startswith("train on tiny") for line in lines)


def test_nothing_is_written(arctic, recipe):
    before = sorted(recipe.parent.rglob("*"))
    arctic("validate", str(recipe))
    assert sorted(recipe.parent.rglob("*")) == before


def test_every_problem_is_a_line_with_its_place_and_the_exit_code_is_2(arctic, recipe):
    recipe.write_text(recipe.read_text().replace("dtype: fp32", "dtyp: fp32") + "seed: many\n")
    outcome = arctic("validate", str(recipe))
    assert outcome.code == 2
    assert outcome.out == ""
    first, second, last = outcome.err.splitlines()
    assert first.startswith(f"{recipe}:5:3: model.dtyp: unknown key; did you mean 'dtype'?")
    assert second.startswith(f"{recipe}:16:7: seed: expected a whole number")
    assert last == "2 problems in the recipe; what depends on these keys is checked when they are right"


def test_overrides_are_applied_and_checked(arctic, recipe):
    assert arctic("validate", str(recipe), "optimizer.lr=1e-4", "checkpoint=[]").code == 0
    outcome = arctic("validate", str(recipe), "optimizer.lrr=1e-4")
    assert outcome.code == 2
    assert "override 'optimizer.lrr=1e-4': optimizer.lrr: unknown key" in outcome.err


def test_a_recipe_that_is_not_there_is_one_line(arctic):
    outcome = arctic("validate", "absent.yaml")
    assert outcome.code == 2
    assert len(outcome.err.splitlines()) <= 2
    assert "absent.yaml" in outcome.err


def test_json_of_a_good_recipe_holds_the_resolved_mapping(arctic, recipe):
    outcome = arctic("validate", str(recipe), "optimizer.lr=3e-4", "--json")
    said = json.loads(outcome.out)
    assert outcome.code == 0
    assert (said["valid"], said["problems"]) == (True, [])
    assert said["recipe"]["optimizer"]["learning_rate"] == 3e-4
    assert said["recipe"]["epochs"] == 1


def test_json_of_a_bad_recipe_holds_every_problem_with_its_place(arctic, recipe):
    outcome = arctic("validate", str(recipe), "--json", "epochs=-1", "modle=1")
    said = json.loads(outcome.out)
    assert outcome.code == 2
    assert (said["valid"], said["recipe"]) == (False, None)
    assert sorted(problem["path"] for problem in said["problems"]) == ["epochs", "modle"]
    recipe.write_text(recipe.read_text() + "sed: 1\n")
    (problem,) = json.loads(arctic("validate", str(recipe), "--json").out)["problems"]
    assert (problem["line"], problem["column"], problem["path"]) == (16, 1, "sed")


def test_verbose_shows_each_value_with_its_origin(arctic, recipe):
    lines = [" ".join(line.split()) for line in arctic("validate", str(recipe), "seed=7", "-v").out.splitlines()]
    assert "seed: 7 # override" in lines
    assert "micro_batch_size: 4 # recipe.yaml:13" in lines
    assert "epochs: 1 # default" in lines


def test_quiet_says_only_whether_it_is_valid(arctic, recipe):
    assert arctic("validate", str(recipe), "-q").out == f"{recipe}: valid\n"


def test_a_broken_plugin_is_a_warning(arctic, recipe, install):
    install("arctic-plugin-ill", {"arctic": {"ill": "ill_plugin"}}, {"ill_plugin": "1 / 0"})
    outcome = arctic("validate", str(recipe))
    assert outcome.code == 0
    (line,) = [line for line in outcome.err.splitlines() if "'ill'" in line]
    assert line.startswith("warning: ")
    assert "arctic run stops on it" in line


def test_the_recipes_code_is_named_with_its_hash_and_can_be_refused(arctic, recipe, monkeypatch):
    code = recipe.parent / "train.py"
    code.write_text("from arctic_training.testing import TinyTrainer\nclass Own(TinyTrainer):\n    name = 'own'\n")
    outcome = arctic("validate", str(recipe), "type=own")
    assert outcome.code == 0
    assert "train.py (sha256 " in outcome.out
    assert arctic("validate", str(recipe), "type=own", "--no-code").code == 2
    monkeypatch.setenv("ARCTIC_NO_CODE", "1")
    assert arctic("validate", str(recipe), "type=own").code == 2


def test_a_file_of_data_that_is_not_there_is_a_note_since_the_recipe_is_right_all_the_same(arctic, tmp_path, recipe):
    path = recipe.with_name("files.yaml")
    path.write_text(
        "type: sft\nmodel: {name_or_path: m}\ndata:\n  sources:\n    - here.jsonl\n    - name/on-the-hub\n"
        "    - ./gone.jsonl:train[:5]\n    - name_or_path: gone*.jsonl\n    - s3://bucket/gone.jsonl\n"
    )
    path.with_name("here.jsonl").touch()
    outcome = arctic("validate", str(path), "data.sources.0=lost.csv")
    assert outcome.code == 0, outcome.err
    assert [line.strip() for line in outcome.out.splitlines() if "not there" in line] == [
        "not there: lost.csv, named by override 'data.sources.0=lost.csv'",
        f"not there: ./gone.jsonl, named at {path}:7",
    ]
    assert "not there" not in arctic("validate", str(path), "data.sources=[here.jsonl]").out


def test_a_folder_of_a_model_that_is_not_there_is_a_note_in_whatever_section(arctic, recipe):
    path = recipe.with_name("models.yaml")
    path.write_text(
        "type: dpo\nmodel: {name_or_path: ./policy}\ntokenizer: {name_or_path: owner/name}\n"
        "ref_model:\n  name_or_path: ./reference\ndata: {sources: [owner/pairs]}\n"
    )
    path.with_name("policy").mkdir()
    outcome = arctic("validate", str(path))
    assert outcome.code == 0, outcome.err
    assert [line.strip() for line in outcome.out.splitlines() if "not there" in line] == [
        f"not there: ./reference, named at {path}:5"
    ]
