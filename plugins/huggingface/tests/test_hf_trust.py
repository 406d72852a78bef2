"""What comes with a model or a data set is not run unasked: pickles, Python files; and what is run is noted."""

from __future__ import annotations

import json
import pickle
import shutil
import sys

import pytest

from arctic_huggingface.library import load_named
from arctic_huggingface.model import HFModelFactory
from arctic_huggingface.tokenizer import HFTokenizerFactory
from arctic_training.errors import DataError, RecipeError

OWN_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own_llama"

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def build(make):
    def build(**keys):
        factory = make(HFModelFactory, **{"dtype": "fp32", **keys})
        return factory.create_model(factory.create_config())

    return build


class Marks:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.fixture
def pickled_model(model_dir, tmp_path):
    """The model's folder with its weights as a pickle."""
    import torch
    from safetensors.torch import load_file

    folder = tmp_path / "pickled"
    shutil.copytree(model_dir, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def test_pickled_weights_are_refused_with_what_to_do(build, pickled_model):
    with pytest.raises(RecipeError, match=r"its weights are pickles \(\*.bin\).*--trust"):
        build(name_or_path=str(pickled_model))


def test_pickled_weights_are_read_by_those_who_trust_them(build, pickled_model, run, model_dir):
    run.config.trusted = True
    ours, theirs = build(name_or_path=str(pickled_model)), build(name_or_path=str(model_dir))
    assert all(ours.state_dict()[name].equal(value) for name, value in theirs.state_dict().items())


@pytest.mark.parametrize("whole", [True, False])
def test_a_pickle_in_a_model_s_folder_is_not_run(build, pickled_model, model_dir, tmp_path, whole):
    marker = tmp_path / "ran"
    for name in ("pytorch_model.bin", "adapter_model.bin", "training_args.bin", "rng_state.pth"):
        (pickled_model / name).write_bytes(pickle.dumps(Marks(marker)))
    if whole:
        shutil.copy(model_dir / "model.safetensors", pickled_model)
        build(name_or_path=str(pickled_model))
    else:
        with pytest.raises(RecipeError):
            build(name_or_path=str(pickled_model))
    assert not marker.exists()


def test_a_configuration_cannot_ask_for_a_pickle(build, pickled_model, model_dir, tmp_path):
    marker = tmp_path / "ran"
    (pickled_model / "adapter_model.bin").write_bytes(pickle.dumps(Marks(marker)))
    shutil.copy(model_dir / "model.safetensors", pickled_model)
    config = json.loads((pickled_model / "config.json").read_text())
    (pickled_model / "config.json").write_text(json.dumps({**config, "transformers_weights": "adapter_model.bin"}))
    with pytest.raises(RecipeError, match="its weights are pickles"):
        build(name_or_path=str(pickled_model))
    assert not marker.exists()


def test_a_folder_without_any_weights_is_told_as_such(build, model_dir, tmp_path):
    shutil.copy(model_dir / "config.json", tmp_path)
    with pytest.raises(RecipeError, match=r"no file named model.safetensors.*model.init: random"):
        build(name_or_path=str(tmp_path))


def test_data_sets_of_pickles_are_refused():
    with pytest.raises(DataError, match="these are pickles"):
        load_named("pandas", "train", "pandas", {"data_files": "rows.pkl"})


def test_the_code_of_a_model_is_run_when_asked_for_and_noted_with_its_hash(
    build, model_dir, tmp_path, run, monkeypatch
):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    folder = tmp_path / "own-model"
    shutil.copytree(model_dir, folder)
    config = json.loads((folder / "config.json").read_text())
    classes = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "own_llama", "auto_map": classes}))
    (folder / "own.py").write_text(OWN_CODE)
    with pytest.raises(RecipeError, match="not run unasked"):
        build(name_or_path=str(folder))
    assert not run.remote_code
    model = build(name_or_path=str(folder), trust_remote_code=True)
    assert type(model).__name__ == "OwnModel"
    noted = run.remote_code["model"]
    assert (noted["name_or_path"], noted["class"], noted["revision"]) == (str(folder), "OwnModel", None)
    assert len(noted["sha256"]) == 64
    assert any("runs code that comes with" in text for text in run.said)


def test_the_tokenizer_s_secrets_do_not_reach_an_export(make, model_dir, tmp_path):
    make(HFModelFactory, name_or_path=str(model_dir))
    secrets = {"token": "hidden-token-1", "api_key": "hidden-key-2"}
    factory = make(HFTokenizerFactory, name_or_path=str(model_dir), kwargs={**secrets, "pad_token": "<|pad|>"})
    tokenizer = factory.create_tokenizer()
    tokenizer.save_pretrained(tmp_path / "export")
    written = "".join(path.read_text() for path in (tmp_path / "export").iterdir())
    assert "hidden" not in written
    assert "<|pad|>" in written
    assert "hidden" not in str(factory.fingerprint_parts(tokenizer))


def test_a_secret_that_would_become_a_word_of_the_vocabulary_is_refused(make, model_dir):
    make(HFModelFactory, name_or_path=str(model_dir))
    factory = make(HFTokenizerFactory, name_or_path=str(model_dir), kwargs={"use_auth_token": "hidden-token-3"})
    with pytest.raises(RecipeError, match=r"tokenizer.kwargs.use_auth_token: .*special token.*HF_TOKEN"):
        factory.create_tokenizer()
