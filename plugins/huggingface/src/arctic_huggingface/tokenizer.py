"""The tokenizer factory ``huggingface``, with a chat template of the recipe's own where it gives one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from arctic_huggingface.added_tokens import AddedTokens, add_to_tokenizer, problems_of
from arctic_huggingface.hub import found, local_path, note_remote_code, refusal, search_folders
from arctic_training.config import key
from arctic_training.redaction import without_secrets
from arctic_training.source_code import source_hash
from arctic_training.tokenizer import TokenizerConfig, TokenizerFactory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LIBRARIES = ("tokenizers", "transformers", "jinja2")
"""What ids and chats are written by; another version may write others."""
ACCESS = ("use_auth_token", "auth_token", "access_token", "hf_token", "hub_token", "api_token")
"""What the hub's token is not called: transformers would make what it holds a special token of the vocabulary."""


class HFTokenizerConfig(TokenizerConfig):
    chat_template: str | None = key(
        None, doc="Jinja text, or the path of a .jinja file, that replaces the tokenizer's chat template."
    )
    kwargs: dict[str, Any] = key(
        factory=dict, doc="Arguments for the tokenizer's constructor, such as {pad_token: <pad>}."
    )
    revision: str | None = key(None, doc="Branch, tag or commit on the hub; the model's when the name is the model's.")
    trust_remote_code: bool | None = key(
        None,
        doc="Run the Python code that comes with the tokenizer; the model's when the name is the model's, else false.",
    )
    added_tokens: list[str] = key(
        factory=list,
        doc="Tokens to add to the vocabulary; the model gets rows for them, which begin as the mean of the others.",
    )
    added_special_tokens: list[str] = key(
        factory=list, doc="The same for tokens that stand for no text, such as marks of turns or tools."
    )

    def check(self) -> Iterator[tuple[str, str]]:
        yield from super().check()
        yield from problems_of(self.added_tokens, self.added_special_tokens)


class HFTokenizerFactory(TokenizerFactory):
    """Builds the tokenizer of a model, or of the recipe's choice."""

    name: ClassVar[str] = "huggingface"
    config: HFTokenizerConfig
    added: AddedTokens | None = None
    """What the recipe added to the vocabulary; the model factory makes room for it."""

    def create_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, padding on the right, with a pad token and the recipe's chat template.

        Raises:
            RecipeError: there is no such tokenizer, or the chat template cannot be read.
        """
        from transformers import AutoTokenizer

        model = self.run.config.model
        name = self.config.name_or_path or model.name_or_path
        revision, trust = self.config.revision, self.config.trust_remote_code
        if name == model.name_or_path:
            revision = getattr(model, "revision", None) if revision is None else revision
            trust = getattr(model, "trust_remote_code", False) if trust is None else trust
        arguments: dict[str, Any] = {"trust_remote_code": bool(trust), **self.config.kwargs}
        if revision:
            arguments["revision"] = revision
        for secret in ACCESS:
            if secret in self.config.kwargs:
                raise refusal(self.run, f"tokenizer.kwargs.{secret}")(
                    "transformers would take it for a special token of the vocabulary",
                    "the token of the hub is kwargs: {token: ...}, or the environment's HF_TOKEN",
                )
        refused = refusal(self.run, "tokenizer.name_or_path")
        folder = local_path(name, self.run, refused)
        with found(f"tokenizer {name!r}", refused, on_hub=folder is None):
            tokenizer = AutoTokenizer.from_pretrained(str(folder or name), **arguments)
        for secret in self.config.kwargs.keys() - without_secrets(self.config.kwargs).keys():
            tokenizer.init_kwargs.pop(secret, None)  # an export writes all that is left there
        note_remote_code(self.run, "tokenizer", type(tokenizer), name, revision)
        if self.config.added_tokens or self.config.added_special_tokens:
            self.added = add_to_tokenizer(
                tokenizer, self.config.added_tokens, self.config.added_special_tokens, self.run
            )
        tokenizer.padding_side = "right"
        if tokenizer.pad_token is None:
            self._choose_pad_token(tokenizer, name)
        if self.config.chat_template is not None:
            tokenizer.chat_template = self._chat_template(self.config.chat_template)
        return tokenizer

    def fingerprint(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """sha256 over everything that decides which ids a text or a chat becomes."""
        return _sha256(self.fingerprint_parts(tokenizer))

    def fingerprint_parts(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
        """The same by name: a hash of what is long, the text of what is short."""
        arguments = without_secrets(self.config.kwargs) | self.config.tokenize_kwargs
        options = {name: getattr(tokenizer, name, None) for name in ("split_special_tokens", "add_prefix_space")}
        parts = {
            "class": type(tokenizer).__name__,
            "vocabulary": _sha256(_vocabulary(tokenizer)),
            "chat_template": _sha256(tokenizer.chat_template),
            "special_tokens": _text({**_names(tokenizer.special_tokens_map), "all": tokenizer.all_special_tokens}),
            "arguments": _text({**options, **arguments}),
            **{library: _version(library) for library in LIBRARIES},
        }
        if not type(tokenizer).__module__.startswith("transformers."):  # code that came with the tokenizer
            parts["code"] = source_hash(type(tokenizer)) or ""
        return parts

    def _choose_pad_token(self, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        if tokenizer.eos_token is None:
            raise refusal(self.run, "tokenizer")(
                f"{name!r} has neither a pad token nor an end-of-text token to pad with",
                "name one: tokenizer: {kwargs: {pad_token: ...}}",
            )
        tokenizer.pad_token = tokenizer.eos_token
        self.run.say(f"tokenizer: no pad token, {tokenizer.eos_token!r} is used for padding, which is never trained on")

    def _chat_template(self, given: str) -> str:
        if "\n" in given or "{" in given:
            return given
        for folder in search_folders(self.run):
            path = folder / Path(given).expanduser()
            if path.is_file():
                return path.read_text(encoding="utf-8")
        raise refusal(self.run, "tokenizer.chat_template")(
            f"there is no file {given!r}, and it is no template either",
            "give Jinja text, or the path of a .jinja file beside the recipe",
        )


def _vocabulary(tokenizer: PreTrainedTokenizerBase) -> Any:
    """All that turns text into ids. Truncation and padding are left out: each call sets them anew."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return json.loads(backend.to_str()) | {"truncation": None, "padding": None}
    file = getattr(tokenizer, "vocab_file", None)
    content = hashlib.sha256(Path(file).read_bytes()).hexdigest() if file and Path(file).is_file() else None
    return [content, sorted(tokenizer.get_vocab().items())]


def _names(special_tokens: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: [str(token) for token in tokens] if isinstance(tokens, (list, tuple)) else str(tokens)
        for name, tokens in special_tokens.items()
    }


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return ""


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _sha256(value: Any) -> str:
    return hashlib.sha256(_text(value).encode()).hexdigest()
