"""The tokenizer factory: padding, templates, and the fingerprint that prepared data is filed under."""

from __future__ import annotations

import pytest

from arctic_huggingface.model import HFModelFactory
from arctic_huggingface.tokenizer import HFTokenizerFactory
from arctic_training.errors import RecipeError


@pytest.fixture
def factory(make, model_dir):
    def factory(**keys):
        make(HFModelFactory, name_or_path=str(model_dir))
        return make(HFTokenizerFactory, **keys)

    return factory


def test_the_tokenizer_is_the_model_s_when_the_recipe_names_none(factory):
    tokenizer = factory().create_tokenizer()
    assert tokenizer.decode(tokenizer("it returns the sum")["input_ids"]) == "it returns the sum"


def test_padding_is_on_the_right_with_the_tokenizer_s_own_pad_token(factory, run):
    tokenizer = factory().create_tokenizer()
    assert (tokenizer.padding_side, tokenizer.pad_token, run.said) == ("right", "<|pad|>", [])


def test_without_a_pad_token_the_end_token_pads_and_that_is_said(factory, make_tokenizer, run, tmp_path):
    make_tokenizer().save_pretrained(tmp_path)
    tokenizer = factory(name_or_path=str(tmp_path)).create_tokenizer()
    assert tokenizer.pad_token == "<|end|>"
    assert any("<|end|>" in text for text in run.said)


def test_a_tokenizer_that_cannot_pad_is_refused(factory, make_tokenizer, tmp_path):
    make_tokenizer(eos_token=None).save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match="neither a pad token nor an end-of-text token"):
        factory(name_or_path=str(tmp_path)).create_tokenizer()


def test_constructor_arguments_reach_the_tokenizer(factory):
    assert factory(kwargs={"pad_token": "<|system|>"}).create_tokenizer().pad_token == "<|system|>"


def test_a_chat_template_may_be_text(factory):
    tokenizer = factory(chat_template="{% for m in messages %}[{{ m.content }}]{% endfor %}").create_tokenizer()
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False) == "[hello]"


def test_a_chat_template_may_be_a_file(factory, tmp_path, monkeypatch):
    (tmp_path / "chat.jinja").write_text("{% for m in messages %}<{{ m.content }}>{% endfor %}")
    monkeypatch.chdir(tmp_path)
    tokenizer = factory(chat_template="chat.jinja").create_tokenizer()
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False) == "<hello>"


def test_a_chat_template_file_that_is_not_there_is_refused(factory):
    with pytest.raises(RecipeError, match=r"no file 'caht\.jinja'"):
        factory(chat_template="caht.jinja").create_tokenizer()


def test_a_tokenizer_that_is_not_there_is_refused(factory):
    with pytest.raises(RecipeError, match="tokenizer 'nobody/nothing'"):
        factory(name_or_path="nobody/nothing").create_tokenizer()


@pytest.mark.parametrize(
    ("model", "tokenizer", "expected"),
    [
        ({"revision": "v1", "trust_remote_code": True}, {}, {"revision": "v1", "trust_remote_code": True}),
        (
            {"revision": "v1", "trust_remote_code": True},
            {"revision": "v2", "trust_remote_code": False},
            {"revision": "v2", "trust_remote_code": False},
        ),
        ({"revision": "v1", "trust_remote_code": True}, {"name_or_path": "other"}, {"trust_remote_code": False}),
    ],
)
def test_revision_and_trust_are_the_model_s_for_the_model_s_own_tokenizer(
    make, make_tokenizer, monkeypatch, model, tokenizer, expected
):
    import transformers

    asked = {}
    monkeypatch.setattr(
        transformers.AutoTokenizer, "from_pretrained", lambda name, **keys: asked.update(keys) or make_tokenizer()
    )
    make(HFModelFactory, name_or_path="nobody/model", **model)
    make(HFTokenizerFactory, **tokenizer).create_tokenizer()
    assert asked == expected


def test_the_fingerprint_changes_with_template_special_tokens_and_vocabulary(factory, make_tokenizer, tmp_path):
    def fingerprint(**keys):
        chosen = factory(**keys)
        return chosen.fingerprint(chosen.create_tokenizer())

    other = make_tokenizer(pad_token="<|pad|>")
    other.add_tokens(["arctic"])
    other.save_pretrained(tmp_path)
    all_of_them = [
        fingerprint(),
        fingerprint(chat_template="{{ messages }}"),
        fingerprint(kwargs={"pad_token": "<|user|>"}),
        fingerprint(name_or_path=str(tmp_path)),
    ]
    assert len(set(all_of_them)) == 4
    assert fingerprint() == all_of_them[0]


def test_the_fingerprint_does_not_depend_on_what_the_tokenizer_was_used_for(factory):
    chosen = factory()
    tokenizer = chosen.create_tokenizer()
    before = chosen.fingerprint(tokenizer)
    tokenizer(["a longer text", "b"], truncation=True, max_length=2, padding=True)
    assert chosen.fingerprint(tokenizer) == before


def test_the_fingerprint_names_its_parts_and_holds_no_token(factory):
    chosen = factory(kwargs={"token": "secret", "split_special_tokens": True})
    parts = chosen.fingerprint_parts(chosen.create_tokenizer())
    assert {"vocabulary", "chat_template", "special_tokens", "arguments", "transformers", "tokenizers"} <= set(parts)
    assert "split_special_tokens" in parts["arguments"]
    assert "secret" not in str(parts)
