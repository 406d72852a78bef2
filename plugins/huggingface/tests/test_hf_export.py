"""``arctic export``: which checkpoint is taken, what comes of it, and what is left alone."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from arctic_huggingface.export import command, export
from arctic_huggingface.layout import Layout
from arctic_huggingface.model import HFModelFactory
from arctic_huggingface.published import PublishedNames
from arctic_huggingface.sources import find_source
from arctic_training.api import get_config
from arctic_training.checkpoint import EngineCheckpoint
from arctic_training.errors import ArcticError, CheckpointError, UsageError
from arctic_training.plugins import create_plugin_manager
from arctic_training.run import Run
from arctic_training.trainer import Trainer

ADDED = ("<|a|>", "<|b|>", "<|c|>")


class Widening(HFModelFactory):
    """Its model has embeddings for more words than its configuration came with."""

    name = "widening"

    def create_model(self, config):
        model = super().create_model(config)
        model.resize_token_embeddings(320 + len(ADDED))
        return model


class Swapping(HFModelFactory):
    """Its model has other embeddings than its configuration says."""

    name = "swapping"

    def create_model(self, config):
        import torch

        model = super().create_model(config)
        model.set_input_embeddings(torch.nn.Embedding(400, 32))
        return model


class Own(HFModelFactory):
    """Its model has a weight that no model of transformers has."""

    name = "own"

    def create_model(self, config):
        import torch

        model = super().create_model(config)
        model.scale = torch.nn.Parameter(torch.ones(3))
        return model


def run_tiny(model_dir, home, **keys):
    """Train the model in ``model_dir`` for two steps, and evaluate."""
    recipe = {
        "type": "tiny",
        "skip_validation": True,
        "plugins": {"use": ["arctic_training.testing.tiny"]},
        "model": {"type": "huggingface", "name_or_path": str(model_dir), "dtype": "fp32"},
        "tokenizer": {"type": "huggingface"},
        "data": {
            "sources": [{"type": "tiny"}],
            "eval_sources": [{"type": "tiny", "name": "held-out"}],
            "cache_dir": str(home / "cache"),
            "dl_num_workers": 0,
            "num_proc": 1,
        },
        "optimizer": {"type": "adamw", "learning_rate": 1e-2},
        "scheduler": {"type": "constant"},
        "engine": {"type": "torch"},
        "train_iters": 2,
        "eval_interval": 2,
        "run_dir": str(home / "run"),
        "checkpoint": [
            {"output_dir": str(home / "out"), "save_every_n_steps": 1},
            {"type": "huggingface", "output_dir": str(home / "hf"), "save_end_of_training": True},
        ],
    }
    run = Run(get_config({**recipe, **keys}))
    run.execute()
    return run


@pytest.fixture(scope="module")
def trained(model_dir, tmp_path_factory):
    """A folder with checkpoints to resume from in ``out``, an export of the run in ``hf``."""
    home = tmp_path_factory.mktemp("trained")
    run_tiny(model_dir, home)
    return home


@pytest.fixture
def arctic_export():
    def arctic_export(*arguments):
        settings = SimpleNamespace(
            block=[], traceback=False, verbosity=0
        )  # the CLI's, which may have added its options
        result = CliRunner().invoke(command, [str(argument) for argument in arguments], obj=settings)
        if isinstance(result.exception, ArcticError):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result

    return arctic_export


def contents(folder):
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_the_export_of_a_checkpoint_is_what_the_run_would_have_written(trained, arctic_export, tmp_path):
    result = arctic_export(trained / "out" / "global_step_2", tmp_path / "model")
    assert contents(tmp_path / "model") == contents(trained / "hf" / "global_step_2")
    assert "torch, step 2" in result.stderr
    assert result.stdout.startswith(f"{tmp_path / 'model'}: ")


def test_the_newest_checkpoint_that_is_whole_is_taken(trained, arctic_export, tmp_path):
    shutil.copytree(trained / "out", tmp_path / "out")
    (tmp_path / "out/global_step_2/engine.pt").write_bytes(b"half")
    result = arctic_export(tmp_path / "out", tmp_path / "model")
    assert "warning: passed over" in result.stderr
    assert "torch, step 1" in result.stderr


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "engine.pt").write_bytes(b"half"), "engine.pt has 4 bytes"),
        (lambda path: (path / "manifest.json").unlink(), "it has no manifest"),
        (lambda path: (path / "model" / "layout.json").write_text("{}"), "layout.json has 2 bytes"),
        (shutil.rmtree, "there is no such directory"),
    ],
)
def test_a_checkpoint_that_is_not_as_its_manifest_says_is_refused(trained, arctic_export, tmp_path, damage, message):
    path = tmp_path / "global_step_2"
    shutil.copytree(trained / "out" / "global_step_2", path)
    damage(path)
    with pytest.raises(CheckpointError, match=message) as caught:
        arctic_export(path, tmp_path / "model")
    assert caught.value.exit_code == 5
    assert not (tmp_path / "model").exists()


def test_a_directory_without_checkpoints_is_refused(arctic_export, tmp_path):
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        arctic_export(tmp_path, tmp_path / "model")


def test_a_checkpoint_of_a_model_that_is_not_of_transformers_says_why(arctic_export, tmp_path):
    run_tiny(
        "tiny",
        tmp_path,
        model={},
        tokenizer={},
        checkpoint={"output_dir": str(tmp_path / "out"), "save_every_n_steps": 2},
    )
    with pytest.raises(CheckpointError, match="does not describe its model"):
        arctic_export(tmp_path / "out", tmp_path / "model")


def test_what_is_there_is_left_alone_and_a_model_is_replaced_when_asked(trained, arctic_export, tmp_path):
    out = tmp_path / "model"
    out.mkdir()
    arctic_export(trained / "out", out)  # nothing was in there
    (out / "notes.txt").touch()
    before = contents(out)
    with pytest.raises(CheckpointError, match="there is something already"):
        arctic_export(trained / "out", out)
    assert contents(out) == before
    arctic_export(trained / "out", out, "--overwrite")
    assert contents(out) == {name: content for name, content in before.items() if name != "notes.txt"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_overwrite_replaces_neither_a_checkpoint_nor_what_is_no_model(trained, arctic_export, tmp_path):
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(CheckpointError, match="and this is none"):
        arctic_export(trained / "out", tmp_path, "--overwrite")
    shutil.copytree(trained / "hf", tmp_path / "hf")
    with pytest.raises(CheckpointError, match="this is a checkpoint"):
        arctic_export(tmp_path / "hf", tmp_path / "hf" / "global_step_2", "--overwrite")
    assert contents(tmp_path / "hf") == contents(trained / "hf")


def changed(path, change):
    """A checkpoint whose tensors are changed as they are read."""

    class Changed(EngineCheckpoint):
        @classmethod
        def read_model(cls, path):
            return ((name, change(tensor)) for name, tensor in super().read_model(path))

    manager = SimpleNamespace(registry=SimpleNamespace(get=lambda *_, **__: Changed))
    return find_source(path, manager, print)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensor: tensor[:0], "is empty"),
        (lambda tensor: tensor[:1], "has the shape"),
        (lambda tensor: tensor / 0, "not finite"),
    ],
)
def test_tensors_that_cannot_be_the_model_s_are_refused_and_nothing_is_left(trained, tmp_path, change, message):
    with pytest.raises(CheckpointError, match=message):
        export(changed(trained / "out", change), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_values_that_do_not_fit_into_the_precision_asked_for_are_refused(trained, tmp_path):
    source = changed(trained / "out", lambda tensor: tensor * 1e9)
    with pytest.raises(CheckpointError, match="not finite") as caught:
        export(source, tmp_path / "model", dtype="fp16")
    assert "another precision" in caught.value.remedy


def test_a_disk_that_is_too_small_is_found_before_anything_is_written(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000))
    with pytest.raises(CheckpointError, match=r"needs [\d,]+ bytes, and 1,000 are free"):
        export(find_source(trained / "hf", create_plugin_manager(), print), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_everybody_can_write_to_is_made_a_model_of_only_by_those_who_trust_it(trained, tmp_path):
    shutil.copytree(trained / "out", tmp_path / "out")
    for manifest in (tmp_path / "out").rglob("manifest.json"):
        manifest.chmod(0o666)
    manager = create_plugin_manager()
    with pytest.raises(CheckpointError, match=r"vouches for nothing\n.*--trust"):
        find_source(tmp_path / "out", manager, print)
    export(find_source(tmp_path / "out", manager, print, trusted=True), tmp_path / "model")
    assert (tmp_path / "model/model.safetensors").is_file()


def test_a_size_that_is_no_number_is_refused(trained, arctic_export, tmp_path):
    with pytest.raises(UsageError, match="takes a number of bytes, found '5GB'"):
        arctic_export(trained / "out", tmp_path / "model", "--max-shard-size", "5GB")


@pytest.mark.parametrize("kind", ["out", "hf"])
def test_precision_and_size_of_files_can_be_chosen_for_every_kind(trained, arctic_export, tmp_path, kind):
    import torch
    from transformers import AutoModelForCausalLM

    arctic_export(trained / kind, tmp_path / "model", "--dtype", "bf16", "--max-shard-size", "20k")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 2
    ours, report = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto", output_loading_info=True)
    assert not any(report.values())
    theirs = AutoModelForCausalLM.from_pretrained(trained / "hf" / "global_step_2", dtype=torch.bfloat16)
    assert all(tensor.equal(theirs.state_dict()[name]) for name, tensor in ours.state_dict().items())


def test_the_card_tells_recipe_data_and_results(trained):
    card = (trained / "hf" / "global_step_2" / "README.md").read_text()
    record = json.loads((trained / "run" / "run.json").read_text())
    lines = map(json.loads, (trained / "run" / "metrics.jsonl").read_text().splitlines())
    loss = next(line["loss"] for line in lines if line["kind"] == "eval")
    assert (trained / "run" / "recipe.yaml").read_text() in card
    assert f"| {loss:.4f} |" in card
    for label, facts in record["data"].items():
        assert f"| {label} | {facts['rows']} |" in card
        assert f"`{facts['cache']}`" in card
    assert record["tokenizer"] in card
    assert "LlamaForCausalLM after 2 optimizer steps" in card
    assert "pipeline_tag: text-generation" in card
    assert "in nats per trained token" in card
    assert "base_model" not in card, "a folder means nothing on another machine"


def test_results_come_back_with_a_resume(model_dir, tmp_path):
    resumable = {"output_dir": str(tmp_path / "out"), "auto_resume": True, "save_end_of_training": True}
    run_tiny(model_dir, tmp_path, checkpoint=resumable)
    wanted = {"type": "huggingface", "output_dir": str(tmp_path / "hf"), "save_end_of_training": True}
    run = run_tiny(model_dir, tmp_path, checkpoint=[resumable, wanted])
    assert run.first_step == 2, "it takes no step and does not evaluate again"
    assert "| held-out | 2 |" in (tmp_path / "hf" / "global_step_2" / "README.md").read_text()


@pytest.mark.parametrize("tied", [False, True])
def test_added_tokens_are_in_tokenizer_configuration_and_weights(
    make_tokenizer, tiny_config, arctic_export, tmp_path, tied
):
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    LlamaForCausalLM(tiny_config(tie_word_embeddings=tied)).save_pretrained(tmp_path / "model")
    tokenizer = make_tokenizer(pad_token="<|pad|>")
    tokenizer.add_special_tokens({"additional_special_tokens": list(ADDED)})
    tokenizer.save_pretrained(tmp_path / "model")
    run_tiny(tmp_path / "model", tmp_path, model={"type": "widening", "name_or_path": str(tmp_path / "model")})
    arctic_export(tmp_path / "out", tmp_path / "exported")
    for folder in (tmp_path / "exported", tmp_path / "hf" / "global_step_2"):
        model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        assert not any(report.values())
        assert model.config.vocab_size == model.get_input_embeddings().num_embeddings == 320 + len(ADDED)
        assert AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(list(ADDED)) == [320, 321, 322]


def test_a_model_that_its_configuration_does_not_make_is_refused(model_dir, arctic_export, tmp_path):
    model = {"type": "swapping", "name_or_path": str(model_dir), "dtype": "fp32"}
    with pytest.raises(
        CheckpointError, match=r"has the shape \[400, 32\], and \[320, 32\] by the model's configuration"
    ):
        run_tiny(model_dir, tmp_path, model=model)
    assert not list((tmp_path / "hf").iterdir())
    with pytest.raises(CheckpointError, match=r"has the shape \[400, 32\]"):
        arctic_export(tmp_path / "out", tmp_path / "model")


def test_a_model_that_only_its_own_class_loads_is_written_as_it_is_with_a_warning(
    model_dir, arctic_export, tmp_path, capsys
):
    from safetensors.torch import load_file

    run_tiny(model_dir, tmp_path, model={"type": "own", "name_or_path": str(model_dir)})
    warning = "has other weights than the model that was trained, such as 'scale'"
    assert warning in capsys.readouterr().err
    assert warning in arctic_export(tmp_path / "out", tmp_path / "model").stderr
    for folder in (tmp_path / "model", tmp_path / "hf" / "global_step_2"):
        assert "scale" in load_file(folder / "model.safetensors")


def test_code_that_came_with_a_model_is_copied_and_not_run(trained, arctic_export, tmp_path, monkeypatch):
    path = tmp_path / "global_step_2"
    shutil.copytree(trained / "out" / "global_step_2", path)
    config = json.loads((path / "model/config.json").read_text())
    classes = {"AutoConfig": "canary.Config", "AutoModelForCausalLM": "canary.Model"}
    (path / "model/config.json").write_text(json.dumps(config | {"auto_map": classes}))
    (path / "model/canary.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.setattr("arctic_huggingface.sources.verify", lambda path: None)  # as if a run had written it
    arctic_export(path, tmp_path / "model")
    assert (tmp_path / "model" / "canary.py").is_file()
    assert not (tmp_path / "ran").exists()


def test_weights_that_are_joined_are_held_back_for_one_layer_only():
    import torch
    from transformers import AutoModelForCausalLM, HrmTextConfig

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "head_dim": 8}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(HrmTextConfig(vocab_size=64, num_hidden_layers=4, **sizes))
    layout = Layout.of(model)
    published, written, most = PublishedNames(model, layout), {}, 0
    for name, tensor in model.state_dict().items():
        written |= {} if name in layout.tied else published.give(name, tensor)
        most = max(most, sum(len(tensors) for tensors in published.waiting.values()))
    assert published.rest() == {}
    assert any("gqkv_proj" in name for name in written)
    assert 0 < most < 10


def test_the_hub_is_told_what_a_model_was_made_of():
    from arctic_huggingface.card import model_card

    class Finished(SimpleNamespace):
        units_of_loss = Trainer.units_of_loss

    config = get_config(
        {
            "type": "tiny",
            "skip_validation": True,
            "plugins": {"use": ["arctic_training.testing.tiny"]},
            "model": {"type": "huggingface", "name_or_path": "some-org/some-model"},
            "data": {"sources": [{"type": "tiny"}]},
        }
    )
    run = SimpleNamespace(last_evaluation={}, data_facts={}, tokenizer_sha256="0", fingerprint=[])
    state = SimpleNamespace(step=1, tokens=2, trained_tokens=1)
    card = model_card(Finished(run=run, config=config, state=state, model_unwrapped=None))
    assert 'base_model: "some-org/some-model"' in card
    assert "# some-model, trained by tiny" in card
    assert "Not evaluated." in card
    assert "streamed: it has no fingerprint" in card
