"""Named sets of evaluation data, in runs of the tiny components."""

import pytest

from arctic_training.errors import RecipeError
from arctic_training.loss import LossSum
from arctic_training.testing.tiny import TinySource, TinyTrainer

pytestmark = pytest.mark.usefixtures("arctic_home")


def with_sets(recipe, *sources):
    return recipe | {"data": recipe["data"] | {"eval_sources": list(sources)}, "eval_interval": 1, "train_iters": 1}


def test_any_name_will_do_where_rows_are_kept_with_the_run(run_recipe, tiny_recipe, plugin_manager, arctic_home):
    class Changing(TinySource):
        """Cannot tell what it would load."""

        name = "changing"

        def fingerprint(self):
            return None

    plugin_manager.register_classes([Changing], "test")
    names = ["math/easy", "../../outside", "..", "a.b", "math"]
    sources = [
        {"type": "changing", "name": name, "texts": ["a" * (3 + number)] * (1 + number)}
        for number, name in enumerate(names)
    ]
    run = run_recipe(with_sets(tiny_recipe, *sources) | {"run_dir": "run"})
    records = {record["name"]: record for record in run.metrics if record["kind"] == "eval"}
    assert [records[name]["rows"] for name in names] == [1, 2, 3, 4, 5]
    kept = [path for path in arctic_home.rglob("rows.json") if not path.is_relative_to(arctic_home / "arctic-home")]
    assert len(kept) == 5
    assert {path.parent.parent.parent for path in kept} == {arctic_home / "run" / "data"}


def test_sources_of_one_name_are_one_set(run_recipe, tiny_recipe):
    sources = [{"type": "tiny", "name": name, "texts": ["ab", "abc"]} for name in ("one", "two", "one")]
    sources.append({"type": "tiny", "texts": ["abcd"]})
    run = run_recipe(with_sets(tiny_recipe, *sources))
    records = [record for record in run.metrics if record["kind"] == "eval"]
    assert [(record["name"], record["rows"]) for record in records] == [("one", 4), ("two", 2), ("eval", 1)]


def test_no_set_is_called_as_the_training_data(tiny_recipe, plugin_manager):
    from arctic_training.recipe import load_recipe
    from arctic_training.resolve import resolve

    with pytest.raises(RecipeError, match="what reports call the training rows"):
        resolve(load_recipe(with_sets(tiny_recipe, {"type": "tiny", "name": "train"})), plugin_manager)


def test_the_line_of_an_evaluation_names_what_its_loss_is_a_mean_over(run_recipe, tiny_recipe, plugin_manager, capsys):
    class OfRows(TinyTrainer):
        name = "of_rows"

        def loss(self, batch):
            return LossSum(super().loss(batch).sum, self.loss_weight(batch))

        def loss_weight(self, batch):
            return float(len(batch["input_ids"]))

    class Named(OfRows):
        name, loss_units = "named", "answers"

    plugin_manager.register_classes([OfRows, Named], "test")
    source = {"type": "tiny", "texts": ["abc"] * 3}
    for kind, over in (("tiny", "6 trained tokens"), ("of_rows", "3 units"), ("named", "3 answers")):
        run_recipe(with_sets(tiny_recipe, source) | {"type": kind})
        assert f" over {over}\n" in capsys.readouterr().err
