"""Which names stand for secrets, and that what stands for one is left out of mappings, texts, command lines."""

from __future__ import annotations

import io
import json
import logging

import pytest

from arctic_training import redaction
from arctic_training.dump import dump, plain
from arctic_training.errors import RecipeError
from arctic_training.recipe import load_recipe
from arctic_training.redaction import (
    PLACEHOLDER,
    RedactingFormatter,
    RedactingStream,
    redact,
    redacted,
    redacted_override,
    redacted_words,
    remember_secrets,
    without_credentials,
    without_secrets,
)
from arctic_training.resolve import resolve
from arctic_training.secret_names import is_secret_name

SECRET = "c4n4ry-" + "value"


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch):
    monkeypatch.setattr(redaction, "_remembered", set())


@pytest.mark.parametrize(
    "name",
    [
        "token", "hf_token", "use_auth_token", "HF_TOKEN", "sas_token", "session_token", "my_company_token", "hfToken",
        "api_key", "apiKey", "X-Api-Key", "private_key", "account_key", "OPENAI_API_KEY", "WANDB_API_KEY", "OUR_KEY",
        "aws_secret_access_key", "AWS_ACCESS_KEY_ID", "AWSAccessKeyId", "secret", "client_secret", "password",
        "PGPASSWORD", "db_passwd", "Authorization", "proxy-authorization", "credentials", "api_keys", "GITHUB_PAT",
    ],
)  # fmt: skip
def test_a_name_of_something_that_opens_a_door_is_that_of_a_secret(name):
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "pad_token", "eos_token", "bos_token", "unk_token", "decoder_start_token", "additional_special_tokens",
        "pad_token_id", "padToken", "tokens", "trained_tokens", "max_trained_tokens", "tokenizer", "tokenize_kwargs",
        "TOKENIZERS_PARALLELISM", "HF_TOKEN_PATH", "key", "keys", "content_key", "sort_key", "public_key",
        "SORT_KEY", "key_value", "author", "monkey", "secretary", "password_file", "loss_per_token", "", "42",
    ],
)  # fmt: skip
def test_a_name_of_a_text_s_token_or_a_column_stays_readable(name):
    assert not is_secret_name(name)


def test_mappings_lose_secrets_by_name_and_keep_all_else():
    given = {
        "kwargs": {"token": "abc", "name": "main", "use_auth_token": True, "headers": {"Authorization": "Bearer abc"}},
        "storage_options": {"key": "AKI", "secret": "s", "anon": False},
        "sorting": {"key": "length"},
        "auth": ["me", "pw"],
        "password": 1234,
        "pad_token": "<pad>",
        "image_newline_token": "<nl>",
        "tokens": 12,
        "loss/secret": 1.5,
        "steps": [1.5, None],
    }
    assert redacted(given) == {
        "kwargs": {
            "token": PLACEHOLDER,
            "name": "main",
            "use_auth_token": True,
            "headers": {"Authorization": PLACEHOLDER},
        },
        "storage_options": {"key": PLACEHOLDER, "secret": PLACEHOLDER, "anon": False},
        "sorting": {"key": "length"},
        "auth": [PLACEHOLDER, PLACEHOLDER],
        "password": PLACEHOLDER,
        "pad_token": "<pad>",
        "image_newline_token": "<nl>",
        "tokens": 12,
        "loss/secret": 1.5,
        "steps": [1.5, None],
    }


def test_a_special_token_of_an_unheard_of_name_stays_readable():
    assert redacted({"boxed_token": "<|box|>", "marker_token": "[MARK]", "boxed_tokens": "x"}) == {
        "boxed_token": "<|box|>",
        "marker_token": "[MARK]",
        "boxed_tokens": "x",
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cannot open https://me:pw@host/rows", f"cannot open https://{PLACEHOLDER}@host/rows"),
        ("s3://key:a/b+c@bucket/rows", f"s3://{PLACEHOLDER}@bucket/rows"),
        ("p://me:p@ss@host/rows", f"p://{PLACEHOLDER}@host/rows"),
        ("zip://a::https://me:pw@host/rows.zip", f"zip://a::https://{PLACEHOLDER}@host/rows.zip"),
        ("git+https://some-token@host/x", f"git+https://{PLACEHOLDER}@host/x"),
        (
            "https://h/x?a=1&X-Amz-Signature=f00&sig=1",
            f"https://h/x?a=1&X-Amz-Signature={PLACEHOLDER}&sig={PLACEHOLDER}",
        ),
        ("Authorization: Bearer abcdefghijklmnopqrst", f"Authorization: Bearer {PLACEHOLDER}"),
        ("found hf_" + "a" * 34 + " in a file", f"found {PLACEHOLDER} in a file"),
    ],
)
def test_addresses_headers_and_tokens_of_services_are_known_by_their_form(text, expected):
    assert redact(text) == expected
    assert redact(expected) == expected


@pytest.mark.parametrize(
    "text",
    [
        "http://localhost:8080/a@b", "zip://*.jsonl::s3://bucket/x@y", "abfs://container@account.dfs.core/x",
        "hf://datasets/u/r@main/f", "ssh://git@host/x", "git@host:x", "https://h/x?page=2&sort_key=a",
        "the key 'token' is unknown", "a basic example, tokens: 5, pad_token=<pad>, risk-free",
    ],
)  # fmt: skip
def test_what_only_resembles_a_secret_is_left_alone(text):
    assert redact(text) == text


def test_a_secret_of_a_recipe_is_found_in_any_text_however_it_is_written():
    secret = 'it\'s a "very"\n secret & more'
    remember_secrets({"kwargs": {"token": secret}, "x": "https://me:pass%21word@host/"})
    for text in (secret, repr(secret), json.dumps(secret), "...?t=it%27s%20a%20%22very%22%0A%20secret%20%26%20more"):
        assert "very" not in redact(f"before {text} after")
        assert redact(f"before {text} after").startswith("before ")
    assert "pass" not in redact("401 for pass!word, pass%21word")


def test_short_values_are_not_looked_for_in_texts():
    remember_secrets({"token": "train"})
    assert redact("training") == "training"


def test_secrets_of_the_environment_are_found_and_paths_are_none(monkeypatch, tmp_path):
    monkeypatch.setenv("OUR_SERVICE_TOKEN", SECRET)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path))
    monkeypatch.setenv("DATABASE_URL", "postgres://me:hidden-word@host/db")
    monkeypatch.setenv("EOS_TOKEN", "end-of-text")
    text = f"{SECRET} in {tmp_path}, hidden-word, end-of-text"
    assert redact(text) == f"{PLACEHOLDER} in {tmp_path}, {PLACEHOLDER}, end-of-text"
    monkeypatch.delenv("OUR_SERVICE_TOKEN")
    assert SECRET in redact(text)


def test_command_lines_keep_all_but_the_secrets():
    words = [
        "arctic", "run", "recipe.yaml", "epochs=2", "data.sources.0.kwargs.token=abc", "x.storage_options.key=abc",
        "data.sources.0.kwargs={token: abc, name: main}", "tokenizer.kwargs.pad_token=<pad>", "--api-key", "abc",
        "--auth-token=abc", "--num_gpus", "2",
    ]  # fmt: skip
    assert redacted_words(words) == [
        "arctic", "run", "recipe.yaml", "epochs=2", f"data.sources.0.kwargs.token={PLACEHOLDER}",
        f"x.storage_options.key={PLACEHOLDER}", f"data.sources.0.kwargs={{token: {PLACEHOLDER}, name: main}}",
        "tokenizer.kwargs.pad_token=<pad>", "--api-key", PLACEHOLDER, f"--auth-token={PLACEHOLDER}", "--num_gpus", "2",
    ]  # fmt: skip
    assert redacted_override("a.credentials.user=me") == f"a.credentials.user={PLACEHOLDER}"


def test_a_cache_key_does_not_depend_on_who_asks():
    mine = {"kwargs": {"token": "a", "name": "main"}, "content": "https://me:pw@host/rows"}
    theirs = {"kwargs": {"name": "main"}, "content": "https://you:word@host/rows"}
    assert without_secrets(mine) == without_secrets(theirs)
    assert without_credentials("https://me:pw@host/rows") == "https://host/rows"


def test_logs_hold_no_secret_in_messages_arguments_and_traces():
    remember_secrets({"password": SECRET})
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(RedactingFormatter("%(message)s"))
    log = logging.Logger("one")
    log.addHandler(handler)
    try:
        raise ValueError(f"cannot log in with {SECRET}")
    except ValueError:
        log.exception("failed with %s", SECRET)
    assert SECRET not in stream.getvalue()
    assert "ValueError: cannot log in with" in stream.getvalue()


def test_a_stream_prints_no_secret_and_is_a_stream_all_the_same():
    remember_secrets({"password": SECRET})
    inner = io.StringIO()
    stream = RedactingStream(inner)
    print("the password is", SECRET, file=stream, flush=True)
    stream.writelines([f"{SECRET}\n"])
    assert inner.getvalue() == f"the password is {PLACEHOLDER}\n{PLACEHOLDER}\n"
    assert not stream.isatty()


@pytest.fixture
def recipe_with_secrets(tiny_recipe):
    tiny_recipe["data"]["sources"] = [{"type": "tiny", "texts": ["see https://me:pw@host/"]}]
    tiny_recipe["deepspeed"] = {}
    tiny_recipe["callbacks"] = []
    tiny_recipe["wandb"] = {"project": f"prefix-{SECRET}"}
    return tiny_recipe


def test_a_recorded_recipe_holds_no_secret(recipe_with_secrets, plugin_manager, monkeypatch):
    monkeypatch.setenv("OUR_TOKEN", SECRET)
    text = dump(resolve(load_recipe(recipe_with_secrets), plugin_manager))
    assert SECRET not in text
    assert "me:pw" not in text
    assert f'project: "prefix-{PLACEHOLDER}"' in text


def test_what_was_left_out_of_a_recipe_has_to_be_given_again(recipe_with_secrets, plugin_manager, tmp_path):
    path = tmp_path / "recorded.yaml"
    path.write_text(dump(resolve(load_recipe(recipe_with_secrets), plugin_manager)))
    with pytest.raises(RecipeError) as caught:
        resolve(load_recipe(path), plugin_manager)
    (problem,) = caught.value.problems
    assert problem.path == "data.sources.0.texts.0"
    assert "give it again, as in data.sources.0.texts.0=..." in str(problem)
    config = resolve(load_recipe(path, ["data.sources.0.texts.0=see https://me:pw@host/"]), plugin_manager)
    assert plain(config)["data"]["sources"][0]["texts"] == ["see https://me:pw@host/"]


def test_an_override_that_is_refused_does_not_show_its_secret(recipe_with_secrets):
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe_with_secrets, ["data.sources.7.kwargs.token=abc"])
    assert "abc" not in str(caught.value)
    assert f"override 'data.sources.7.kwargs.token={PLACEHOLDER}'" in str(caught.value)
