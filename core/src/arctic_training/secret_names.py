"""Which names stand for secrets: ``hf_token`` and ``api_key`` do, ``pad_token`` and ``sort_key`` do not."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

ALWAYS = frozenset(
    {
        "secret", "secrets", "password", "passwords", "passwd", "pwd", "passphrase", "credential",
        "credentials", "authorization", "auth", "bearer", "cookie", "cookies", "pat", "jwt", "apikey",
        "accesskey", "secretkey", "privatekey", "authtoken", "accesstoken", "apitoken", "sastoken",
    }
)  # fmt: skip
"""Last words that mean a secret, whatever stands before them."""
ENDINGS = ("password", "passwd", "passphrase", "secret", "credentials", "apikey", "secretkey", "privatekey")
"""Ends of a last word that is written in one, as in PGPASSWORD."""
OF_VOCABULARIES = frozenset(
    {
        "pad", "padding", "bos", "eos", "unk", "sep", "cls", "mask", "eot", "eom", "eod", "eop", "boi", "eoi",
        "nl", "newline", "image", "audio", "video", "vision", "visual", "special", "additional", "extra",
        "added", "prompt", "start", "end", "stop", "begin", "first", "last", "next", "target", "decoder",
        "encoder", "forced", "word", "sub", "per", "tool", "think", "thinking", "assistant", "system", "role",
        "separator", "sentinel", "placeholder", "prefix", "suffix", "middle", "fim", "language", "lang",
        "timestamp", "boundary", "delimiter", "blank", "space", "class", "label", "register", "document",
        "turn", "message",
    }
)  # fmt: skip
"""Words before ``token`` that make it one of a text."""
OF_DOORS = frozenset(
    {
        "api", "access", "secret", "private", "auth", "encryption", "encrypt", "decryption", "signing",
        "account", "storage", "shared", "subscription", "service", "client", "ssh", "gpg", "pgp", "rsa", "tls",
        "ssl", "hmac", "master", "license", "admin", "deploy", "webhook", "sas", "session", "aws", "azure",
        "gcp", "google", "openai", "anthropic", "wandb", "hf", "hub", "huggingface", "github", "gitlab",
        "cohere", "gemini", "mistral", "comet", "neptune", "mlflow", "swanlab",
    }
)  # fmt: skip
"""Words before ``key`` that make it one that opens something; others name a column, a field or an entry."""
NO_SECRETS = frozenset(["public", "sort", "primary", "foreign", "cache"])
"""Words before ``key`` that keep even an environment variable readable."""
QUALIFIED_PLURALS = frozenset({"keys", "tokens"})
SIBLINGS = frozenset({"secret", "token", "password", "endpoint_url", "client_kwargs"})
"""Names beside which ``key`` is half of a credential, as in ``{key: ..., secret: ...}``."""
DOORS = frozenset({"storage_options", "client_kwargs", "config_kwargs", "s3_additional_kwargs", "connection"})
"""Mappings of arguments for whoever reaches something elsewhere, in which ``key`` is half of a credential."""
NUMBERS_TOO = frozenset(["password", "passwd", "pwd", "passphrase", "secret", "credential", "credentials", "pat"])
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_SPECIAL_TOKEN = re.compile(r"<[^<>\s]{1,60}>|\[[A-Z0-9_ ]{1,40}\]")


@lru_cache(maxsize=4096)
def is_secret_name(name: str) -> bool:
    """Whether a key, an argument or an environment variable of this name holds a secret.

    The last word decides, with the one before it: of ``token`` all are secrets but those of a vocabulary, of ``key``
    those that open something, and in capitals, as environment variables are written, nearly all.
    """
    words = [word.lower() for word in _WORDS.findall(name)]
    if not words or "/" in name:  # a path, or a figure such as the loss/<name> of a source
        return False
    last, before = words[-1], set(words[:-1])
    if last in ALWAYS or last.endswith(ENDINGS):
        return True
    if last == "token":
        return not before & OF_VOCABULARIES
    if last == "key":
        in_capitals = name.isupper() and bool(before) and not before & NO_SECRETS
        return in_capitals or bool(before & OF_DOORS and not before & NO_SECRETS)
    if last in QUALIFIED_PLURALS:
        return bool(before & {"api", "access", "auth", "secret", "private"})
    return words[-3:] == ["access", "key", "id"]


def secret_names(names: Iterable[Any], parent: Any = "") -> set[str]:
    """The names of one mapping that hold secrets.

    Args:
        names: all names of the mapping.
        parent: the name under which the mapping stands itself.
    """
    known = {name for name in names if isinstance(name, str)}
    found = {name for name in known if is_secret_name(name)}
    if parent in DOORS or known & SIBLINGS:
        found |= known & {"key"}
    return found


def is_readable(value: Any, name: str) -> bool:
    """Whether a value may be shown although its name is that of a secret: nothing, a switch, a figure, a special
    token."""
    if value is None or isinstance(value, bool) or value == "":
        return True
    last = _WORDS.findall(name)[-1:] or [""]
    if isinstance(value, float):
        return True
    if isinstance(value, int):
        return last[0].lower() not in NUMBERS_TOO
    return last[0].lower() == "token" and isinstance(value, str) and bool(_SPECIAL_TOKEN.fullmatch(value))
