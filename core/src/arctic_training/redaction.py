"""Keeps secrets out of whatever is written or printed: by name in mappings, by value in any text.

A secret that this process has seen in a recipe or its environment is known from then on, since what it could reach
(standard streams, logs, messages of other libraries) belongs to the whole process too.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import lru_cache
from pathlib import PurePath
from typing import Any, TextIO
from urllib.parse import quote, unquote

from arctic_training.secret_names import is_readable, is_secret_name, secret_names

PLACEHOLDER = "<secret left out>"
LEAST_LENGTH = 8
"""Characters of a value that is looked for in texts; shorter ones would be found in the middle of words."""

_remembered: set[str] = set()
_URL_CREDENTIALS = re.compile(
    # user:password, where a password may hold what ought to be escaped; no port (`host:80/a@b`), no chain of addresses.
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.\-]*://)"
    r"(?P<user>[^\s/@:'\"<>]*):(?!:|\d+[/?#])(?:[^\s/?#'\"<>]+|[^\s'\"<>@]+)@"
    # A token alone, as in https://TOKEN@host; elsewhere what stands before the @ is a container or a user.
    r"|(?P<web>(?:git\+)?https?://)[^\s/?#@:'\"<>]+@"
)
_QUERY = re.compile(r"(?P<sign>[?&])(?P<name>[\w.\-]+)=[^\s&'\"<>#]+")
_IN_QUERIES = frozenset({"sig", "signature", "credential", "key"})
_HEADER = re.compile(r"(?i)\b((?:bearer|basic)\s+)[A-Za-z0-9._~+/=\-]{16,}")
_SHAPES = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|gh[opsru]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|glpat-[\w\-]{20,}|xox[abprs]-[\w\-]{20,}"
    r"|sk-(?:ant-|proj-)?[A-Za-z0-9_\-]{32,}|AKIA[A-Z0-9]{16}|pypi-[\w\-]{40,})(?![A-Za-z0-9])"
)
"""Tokens of services that say by their first letters what they are; libraries read them from files of their own."""
_PAIR = re.compile(r"(?P<name>[\w\-]+)(?P<sign>['\"]?\s*[:=]\s*)(?P<value>'[^']*'|\"[^\"]*\"|[^\s,{}\[\]'\"]+)")


def redact(text: str) -> str:
    """A text without the secrets that this process knows, credentials in addresses, and what looks like a token."""
    return _redact(text, _known())


def redacted(value: Any, parent: Any = "") -> Any:
    """A copy of nested mappings and lists without secrets: by name, and by value in every text.

    Args:
        value: plain values; what is no text, mapping or list stays as it is.
        parent: the name under which the value stands.
    """
    return _redacted(value, parent, _known())


def hidden(value: Any, name: str) -> Any:
    """What may be written of a value whose name is that of a secret: a placeholder for each text in it."""
    if isinstance(value, Mapping):
        return {key: hidden(item, name) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [hidden(item, name) for item in value]
    return value if is_readable(value, name) else PLACEHOLDER


def without_secrets(value: Any, parent: Any = "") -> Any:
    """A copy without the entries whose names are those of secrets, for what must not depend on who is asking."""
    if isinstance(value, Mapping):
        secret = secret_names(value, parent)
        return {
            name: without_secrets(item, name)
            for name, item in value.items()
            if name not in secret or is_readable(item, name)
        }
    if isinstance(value, (list, tuple)):
        return [without_secrets(item, parent) for item in value]
    return without_credentials(value) if isinstance(value, str) else value


def without_credentials(address: str) -> str:
    """An address without user and password."""
    return _URL_CREDENTIALS.sub(lambda match: match["scheme"] or match["web"], address)


def remember_secrets(value: Any) -> None:
    """Know the secrets in nested mappings and lists from now on, wherever else they turn up."""
    for secret in _secrets_in(value):
        _remembered.update(_spellings(secret))


def redacted_words(words: Sequence[str]) -> list[str]:
    """A command line without secrets: values of options and of ``key=value`` overrides whose names say so."""
    result: list[str] = []
    hide_next = False
    for word in words:
        option, equals, _ = word.partition("=")
        is_option = word.startswith("--") and is_secret_name(option)
        if hide_next and not word.startswith("-"):
            result.append(PLACEHOLDER)
        elif is_option and equals:
            result.append(f"{option}={PLACEHOLDER}")
        else:
            result.append(redacted_override(word))
        hide_next = is_option and not equals
    return result


def redacted_override(override: str) -> str:
    """A ``key.path=value`` override without the secret in it."""
    path, equals, value = override.partition("=")
    names = path.strip().split(".")
    for parent, name in zip(["", *names], names, strict=False):
        if equals and secret_names([name], parent) and not is_readable(value, name):
            return f"{path}={PLACEHOLDER}"
    if equals and value.lstrip()[:1] in ("{", "["):
        value = _PAIR.sub(_without_pair, value)
    return redact(f"{path}{equals}{value}")


def shown_command(words: Sequence[str]) -> str:
    """A command line as a shell reads it, without secrets."""
    return shlex.join(redacted_words(words))


class RedactingFormatter(logging.Formatter):
    """Formats a record, its trace included, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


class RedactingStream:
    """Stands before a text stream and hands on what is written without secrets."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redact(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def redacting_streams(stdout: TextIO, stderr: TextIO) -> Iterator[None]:
    """Whatever this process prints through Python, by whichever library, is printed without secrets."""
    with redirect_stdout(RedactingStream(stdout)), redirect_stderr(RedactingStream(stderr)):
        yield


def _known() -> re.Pattern[str] | None:
    """What finds the secrets that this process knows at the moment."""
    return _pattern_of(frozenset(_remembered | _of_environment()))


def _redact(text: str, known: re.Pattern[str] | None) -> str:
    if "://" in text:
        text = _URL_CREDENTIALS.sub(lambda match: f"{match['scheme'] or match['web']}{PLACEHOLDER}@", text)
        text = _QUERY.sub(_without_value, text)
    if known is not None:
        text = known.sub(PLACEHOLDER, text)
    return _SHAPES.sub(PLACEHOLDER, _HEADER.sub(rf"\1{PLACEHOLDER}", text))


def _redacted(value: Any, parent: Any, known: re.Pattern[str] | None) -> Any:
    if isinstance(value, Mapping):
        secret = secret_names(value, parent)
        result = {}
        for name, item in value.items():
            shown = _redact(name, known) if isinstance(name, str) else name
            result[shown] = hidden(item, name) if name in secret else _redacted(item, name, known)
        return result
    if isinstance(value, (list, tuple)):
        return [_redacted(item, parent, known) for item in value]
    return _redact(str(value), known) if isinstance(value, (str, PurePath)) else value


def _of_environment() -> set[str]:
    """The secrets in the environment as it is now: a recipe's code may have set some."""
    found: set[str] = set()
    for name, value in os.environ.items():
        if len(value) >= LEAST_LENGTH and (is_secret_name(name) or "://" in value):
            found |= _of_variable(name, value)
    return found


@lru_cache(maxsize=1024)
def _of_variable(name: str, value: str) -> frozenset[str]:
    secrets = list(_passwords_in(value))
    if is_secret_name(name) and not os.path.exists(value):  # a file that holds a secret is none
        secrets.append(value)
    return frozenset(spelling for secret in secrets for spelling in _spellings(secret))


def _secrets_in(value: Any, parent: Any = "") -> Iterator[str]:
    if isinstance(value, Mapping):
        secret = secret_names(value, parent)
        for name, item in value.items():
            yield from (_texts_in(item, name) if name in secret else _secrets_in(item, name))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _secrets_in(item, parent)
    elif isinstance(value, str):
        yield from _passwords_in(value)


def _texts_in(value: Any, name: str) -> Iterator[str]:
    if isinstance(value, (Mapping, list, tuple)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _texts_in(item, name)
    elif not is_readable(value, name):
        yield str(value)


def _passwords_in(text: str) -> Iterator[str]:
    """What stands before the ``@`` of addresses in a text, and of it the password alone."""
    for match in _URL_CREDENTIALS.finditer(text):
        credentials = match[0].removeprefix(match["scheme"] or match["web"])[:-1]
        password = credentials.partition(":")[2] or credentials
        yield from (password, unquote(password))


def _spellings(secret: str) -> Iterator[str]:
    """A secret as it is, and as messages, JSON and addresses write it; of several lines each that is long enough."""
    if secret == PLACEHOLDER:
        return
    forms = {secret, repr(secret)[1:-1], json.dumps(secret)[1:-1], quote(secret, safe=""), *secret.splitlines()}
    yield from (form.strip() for form in forms if len(form.strip()) >= LEAST_LENGTH and "PRIVATE KEY---" not in form)


@lru_cache(maxsize=8)
def _pattern_of(secrets: frozenset[str]) -> re.Pattern[str] | None:
    """The longest first, since one may begin with another."""
    return re.compile("|".join(map(re.escape, sorted(secrets, key=len, reverse=True)))) if secrets else None


def _without_value(match: re.Match[str]) -> str:
    name = match["name"]
    secret = is_secret_name(name) or name.rpartition("-")[2].lower() in _IN_QUERIES
    return f"{match['sign']}{name}={PLACEHOLDER}" if secret else match[0]


def _without_pair(match: re.Match[str]) -> str:
    secret = is_secret_name(match["name"]) and not is_readable(match["value"], match["name"])
    return f"{match['name']}{match['sign']}{PLACEHOLDER}" if secret else match[0]
