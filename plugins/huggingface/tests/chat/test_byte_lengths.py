"""Where tokens are by the bytes they stand for: as the offsets of the tokenizers library have it, or not at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from arctic_huggingface.chat.byte_lengths import byte_lengths_of

SENTENCES = ["What is the capital of France? Paris.", "naïve café, 東京 and 🙂\n\n  12345", "def f(x):\n    return x\n"]


def made(*, cut=None, normalizer=None, alphabet=None, added=(), **options):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = cut or pre_tokenizers.ByteLevel(add_prefix_space=False)
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet() if alphabet is None else alphabet
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=["<|end|>"], show_progress=False, **options
    )
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    if added:
        tokenizer.add_tokens(list(added))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def sequence(*steps):
    return pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


BYTE_LEVEL = {
    "gpt2": made(),
    "llama3": made(cut=sequence(pre_tokenizers.Split(" ", "isolated"), pre_tokenizers.Digits(individual_digits=True))),
    "qwen": made(normalizer=normalizers.NFC()),
    "greedy special tokens": made(added=[AddedToken("<|x|>", lstrip=True, rstrip=True, special=True)]),
    "words among the added tokens": made(added=[AddedToken("東京", normalized=False), AddedToken("<think>")]),
}


@pytest.mark.parametrize("name", BYTE_LEVEL)
@given(
    parts=st.lists(
        st.one_of(
            st.text(),
            st.text(alphabet=" \n\taé\u0301e東🙂\u0958", max_size=8),
            st.sampled_from([*SENTENCES, "<|end|>", "<|x|>", " <|x|> ", "<think>"]),
        ),
        max_size=6,
    )
)
def test_tokens_start_where_the_offsets_say(name, parts):
    tokenizer, text = BYTE_LEVEL[name], "".join(parts)
    backend = tokenizer.backend_tokenizer
    lengths = byte_lengths_of(tokenizer, backend)
    encoding = backend.encode(text, add_special_tokens=False)
    places = lengths.places(text, encoding.ids)
    if places is None:  # something was dropped or changed, and only the offsets can tell where
        changed = backend.normalizer is not None and backend.normalizer.normalize_str(text) != text
        assert changed or not text or "<|x|>" in text
        return
    assert len(places) == len(encoding.ids)
    whole = [token for token, (start, end) in enumerate(encoding.offsets) if text[start:end].isascii()]
    for token in whole:
        start, end = encoding.offsets[token]
        assert places.first_from(start) == token
        assert all(places.around(character, start) == token for character in range(start, end))
        assert places.around(start, start + 1) is None
        assert all(places.first_from(character) is None for character in range(start + 1, end))


@pytest.mark.parametrize(
    "tokenizer",
    [
        made(cut=pre_tokenizers.ByteLevel(add_prefix_space=True)),
        made(cut=pre_tokenizers.Metaspace()),
        made(cut=pre_tokenizers.Sequence([pre_tokenizers.ByteLevel(), pre_tokenizers.Digits()])),
        made(alphabet=[]),
        made(end_of_word_suffix="</w>"),
    ],
    ids=["a space before each text", "metaspace", "bytes cut again", "bytes without a token", "ends of words"],
)
def test_tokenizers_that_do_more_than_cut_bytes_are_left_to_their_offsets(tokenizer):
    assert byte_lengths_of(tokenizer, tokenizer.backend_tokenizer) is None
