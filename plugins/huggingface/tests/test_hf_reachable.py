"""A hub that cannot be reached is told at once, and the libraries ask it as before afterwards."""

from __future__ import annotations

import socket
import time
from types import SimpleNamespace

import pytest

from arctic_huggingface import reachable
from arctic_huggingface.model import HFModelFactory
from arctic_huggingface.reachable import offline_if_unreachable
from arctic_huggingface.source import HFDataSource
from arctic_huggingface.tokenizer import HFTokenizerFactory
from arctic_training.errors import DataError, RecipeError


@pytest.fixture
def endpoint(monkeypatch):
    """A port on this machine that stands for the hub; nobody listens there until a test does."""
    import datasets
    from huggingface_hub import constants

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        monkeypatch.setattr(reachable, "getproxies", dict)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{listener.getsockname()[1]}")
        monkeypatch.delenv("HF_HUB_OFFLINE")
        reachable._answers.cache_clear()
        yield listener
        reachable._answers.cache_clear()


def ask(make, kind):
    if kind == "model":
        make(HFModelFactory, name_or_path="nobody/no-model").create_config()
    elif kind == "tokenizer":
        factory = make(HFTokenizerFactory, name_or_path="nobody/no-model")
        factory.run.config.model = SimpleNamespace(name_or_path="other")
        factory.create_tokenizer()
    else:
        source = make(HFDataSource, name_or_path="nobody/no-data")
        source.load(source.config, "train")


@pytest.mark.parametrize("kind", ["model", "tokenizer", "data"])
def test_a_name_on_a_hub_that_is_away_is_one_error_within_seconds(make, endpoint, kind, capfd):
    began = time.monotonic()
    with pytest.raises((RecipeError, DataError), match="the hub cannot be reached and it is not in the cache"):
        ask(make, kind)
    assert time.monotonic() - began < 20  # the libraries alone wait for 23 seconds, for each
    assert capfd.readouterr().err == ""


def test_the_libraries_are_as_before_afterwards_whatever_happened(endpoint):
    import datasets
    from huggingface_hub import constants

    def switches():
        return constants.is_offline_mode(), datasets.config.HF_HUB_OFFLINE, datasets.config.HF_DATASETS_OFFLINE

    with pytest.raises(KeyError), offline_if_unreachable():
        assert switches() == (True, True, True)
        raise KeyError
    assert switches() == (False, False, False)
    with offline_if_unreachable(on_hub=False):
        assert switches() == (False, False, False)


def test_a_hub_that_answers_is_asked(endpoint):
    from huggingface_hub import constants

    endpoint.listen()
    with offline_if_unreachable():
        assert not constants.is_offline_mode()
