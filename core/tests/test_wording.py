"""Numbers and names in the words of messages."""

import pytest

from arctic_training.wording import counted_by_name


@pytest.mark.parametrize(
    ("number", "name", "words"),
    [
        (2, "rows refused, equal answers", "2 rows refused, equal answers"),
        (1, "rows refused, equal answers", "1 row refused, equal answers"),
        (1, "mismatched answers cut to max_length", "1 mismatched answer cut to max_length"),
        (1, "prompts cut to max_prompt_length", "1 prompt cut to max_prompt_length"),
        (1234, "rows kept", "1,234 rows kept"),
        (1, "packs dropped", "1 pack dropped"),
    ],
)
def test_one_of_what_is_counted_is_told_in_the_singular(number, name, words):
    assert counted_by_name(number, name) == words
