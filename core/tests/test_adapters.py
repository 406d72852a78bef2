"""Models that are trained beside a base: what a checkpoint keeps of them, and what marks the base."""

from __future__ import annotations

import pytest

from arctic_training.adapters import Adapter, adapter_of, fingerprint, kept_state, load_kept, set_adapter
from arctic_training.config import Config, KeyProblem, key
from arctic_training.errors import RecipeError
from arctic_training.hookspecs import hookimpl
from arctic_training.recipe import load_recipe
from arctic_training.resolve import resolve
from arctic_training.run import Run


@pytest.fixture
def model():
    import torch

    torch.manual_seed(0)
    return torch.nn.ModuleDict(
        {"base": torch.nn.Linear(4, 4), "added": torch.nn.Linear(4, 2), "fixed": torch.nn.BatchNorm1d(2)}
    )


@pytest.fixture
def adapted(model):
    """A model whose base is frozen, with a part of the adapter that is not trained either."""
    for name in ("base", "fixed"):
        model[name].requires_grad_(False)
    names = {name: name for name in ("added.weight", "added.bias", "fixed.weight")}
    set_adapter(model, Adapter("base", None, "fp32", fingerprint(model), {}, names))
    return model


def test_a_model_without_an_adapter_is_kept_whole_also_where_it_is_frozen(model):
    model["base"].requires_grad_(False)
    assert adapter_of(model) is None
    assert kept_state(model).keys() == model.state_dict().keys()


def test_of_an_adapted_model_frozen_weights_of_the_base_are_left_out(adapted):
    assert sorted(kept_state(adapted)) == [
        "added.bias", "added.weight", "fixed.num_batches_tracked", "fixed.running_mean", "fixed.running_var",
        "fixed.weight",
    ]  # fmt: skip


def test_what_is_kept_is_loaded_and_nothing_else_is_taken(adapted):
    state = {name: tensor.clone() + 1 for name, tensor in kept_state(adapted).items()}
    before = adapted["base"].weight.clone()
    load_kept(adapted, state)
    assert all(adapted.state_dict()[name].equal(tensor) for name, tensor in state.items())
    assert adapted["base"].weight.equal(before)
    with pytest.raises(RuntimeError, match=r"no added\.bias"):
        load_kept(adapted, {name: tensor for name, tensor in state.items() if name != "added.bias"})
    with pytest.raises(RuntimeError, match=r"no base\.weight"):
        load_kept(adapted, state | {"base.weight": before})


def test_another_base_has_another_fingerprint(model):
    import torch

    mark = fingerprint(model)
    assert fingerprint(model) == mark
    with torch.no_grad():
        model["base"].weight[-1, -1] += 1e-3
    other = fingerprint(model)
    assert other != mark
    assert fingerprint(model, ["base"]) != other
    with torch.no_grad():
        model["base"].weight[-1, -1] += 1
    assert fingerprint(model, ["base"]) == fingerprint(model, ["base"]) != fingerprint(model)


class Checking:
    """Finds that two keys of a recipe do not go together."""

    @hookimpl
    def arctic_check_recipe(self, config):
        return (
            [KeyProblem(("epochs",), "is more than seed", remedy="raise seed")] if config.epochs > config.seed else []
        )


def test_a_plugin_finds_what_is_wrong_with_a_whole_recipe(plugin_manager, tiny_recipe):
    plugin_manager.register(Checking(), "checking")
    assert resolve(load_recipe(tiny_recipe | {"epochs": 3}), plugin_manager).epochs == 3
    with pytest.raises(RecipeError, match="epochs: is more than seed; raise seed"):
        resolve(load_recipe(tiny_recipe | {"epochs": 3, "seed": 1}), plugin_manager)


class NeedyConfig(Config):
    extra: str | None = key(None, needs="arctic-plugin-nowhere", doc="Works elsewhere.")


class Needy:
    @hookimpl
    def arctic_register_config_sections(self):
        return {"needy": NeedyConfig}


def test_a_key_that_needs_another_distribution_validates_and_a_run_says_what_to_install(
    arctic_home, plugin_manager, tiny_recipe
):
    from arctic_training.preflight import refuse_keys_without_their_plugin

    config = resolve(load_recipe(tiny_recipe), plugin_manager)
    refuse_keys_without_their_plugin(config)
    plugin_manager.register(Needy(), "needy")
    config = resolve(load_recipe(tiny_recipe | {"needy": {"extra": "x"}}), plugin_manager)
    assert config.sections["needy"].extra == "x"
    with pytest.raises(RecipeError, match=r"needy\.extra: needs arctic-plugin-nowhere.*; pip install"):
        Run(config).execute()
