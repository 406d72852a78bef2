"""Tokens that a recipe adds to a vocabulary: ids in the tokenizer, and rows in the model's embeddings.

Shapes: R rows of an embedding, D hidden units.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class AddedTokens(NamedTuple):
    """The ids of the tokens that a recipe names, and which of them the tokenizer did not have before."""

    ids: frozenset[int] = frozenset()
    new_ids: frozenset[int] = frozenset()


def problems_of(tokens: Sequence[str], special_tokens: Sequence[str]) -> Iterator[tuple[str, str]]:
    """What is wrong with the two lists of a ``tokenizer`` section: key and message."""
    seen: set[str] = set()
    for key, given in (("added_tokens", tokens), ("added_special_tokens", special_tokens)):
        for token in given:
            if not token.strip():
                yield key, f"{token!r} is no token: nobody could see it"
            elif token in seen:
                yield key, f"{token!r} is named twice"
            seen.add(token)


def add_to_tokenizer(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str], special_tokens: Sequence[str], run: Any
) -> AddedTokens:
    """Give each token an id, behind those that there are; what the vocabulary has already is said and keeps its id."""
    known = set(tokenizer.get_vocab())
    tokenizer.add_tokens(list(tokens))
    tokenizer.add_tokens(list(special_tokens), special_tokens=True)
    names = [*tokens, *special_tokens]
    ids = dict(zip(names, tokenizer.convert_tokens_to_ids(names), strict=True))
    old = [name for name in names if name in known]
    if old:
        run.say(f"tokenizer: {len(old)} of {len(names)} added tokens have been in its vocabulary: {', '.join(old[:3])}")
    return AddedTokens(frozenset(ids.values()), frozenset(ids[name] for name in names if name not in known))


def make_room(model: PreTrainedModel, added: AddedTokens, multiple: int, run: Any) -> None:
    """Give the model a row for each added token, in the embeddings of its input and of its output.

    New rows hold the mean of the old ones, which keeps what is predicted about old tokens nearly as it was: a new token
    is then at most as likely as the average one (Hewitt, 2021, "Initializing New Word Embeddings for Pretrained
    Language Models"). Rows that ZeRO-3 has partitioned already are gathered for it.

    Args:
        model: any that transformers can resize, tied or not.
        added: what ``add_to_tokenizer`` gave.
        multiple: the number of rows is rounded up to a multiple of it.
        run: the run.
    """
    rows = _num_rows(model.get_input_embeddings().weight)
    wanted = sorted(added.new_ids | {number for number in added.ids if number >= rows})
    needed = max([rows, *(number + 1 for number in wanted)])
    needed = -(-needed // multiple) * multiple
    if not wanted and needed == rows:
        return
    model.new_rows = sorted({*wanted, *range(rows, needed)})
    fill_rows(model, model.new_rows, needed)
    run.say(
        f"model: {len(wanted)} tokens and {needed - rows} rows are added to its embeddings, now of {needed:,} rows; "
        "they begin as the mean of the others"
    )


def fill_rows(model: PreTrainedModel, new_rows: Sequence[int], needed: int) -> None:
    """Give the embeddings so many rows, and each new one the mean of those before the first of them.

    Args:
        model: any that transformers can resize.
        new_rows: numbers of rows, in order.
        needed: rows after it.
    """
    means = [_mean_row(part, new_rows[0]) for part in _parts(model)]
    if needed != _num_rows(model.get_input_embeddings().weight):
        _say_whether_tied(model)
        model.resize_token_embeddings(needed, mean_resizing=False)
    for part, mean in zip(_parts(model), means, strict=True):
        with _whole(part, written=True):
            part.data[list(new_rows)] = mean.to(part.dtype)


def _say_whether_tied(model: PreTrainedModel) -> None:
    """Files may hold two embeddings where their configuration says that they are one; transformers keeps both, until it
    resizes them."""
    output = model.get_output_embeddings()
    if output is not None and output.weight is not model.get_input_embeddings().weight:
        model.config.get_text_config().tie_word_embeddings = model.config.tie_word_embeddings = False


def _parts(model: PreTrainedModel) -> list[torch.Tensor]:
    """What has a row for each token: the input's embeddings, the output's and their bias; tied ones once."""
    output = model.get_output_embeddings()
    parts = [model.get_input_embeddings().weight]
    if output is not None and output.weight is not parts[0]:
        parts.append(output.weight)
    if getattr(output, "bias", None) is not None:
        parts.append(output.bias)
    return parts


def _mean_row(part: torch.Tensor, num_old: int) -> torch.Tensor:
    import torch

    with _whole(part):
        # So precise that no order of adding up shows: an adapter knows its base by every bit.
        precise = torch.float32 if part.device.type == "mps" else torch.float64
        return part.detach()[:num_old].mean(0, dtype=precise)


def _num_rows(weight_RD: torch.Tensor) -> int:
    return int(getattr(weight_RD, "ds_shape", weight_RD.shape)[0])


def _whole(part: torch.Tensor, *, written: bool = False) -> AbstractContextManager:
    """Within it a parameter that ZeRO-3 has partitioned is whole."""
    if not hasattr(part, "ds_id"):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([part], modifier_rank=0 if written else None)
