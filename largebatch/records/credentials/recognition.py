"""Recognises secrets by their name or their look. A config must hold none.

A secret in a config ends in records, shell histories and lists of processes. It belongs into the environment,
`${oc.env:NAME}`. Some names mark any value as a secret, for others the value decides, and some texts are secrets
anywhere.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from largebatch.records.credentials import vocabulary as known

_WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+")
_ASSIGNED = re.compile(
    r"(?<!://)(?<!\w)([A-Za-z][\w.-]*)[\"']?\s*(?:=|:(?!/))\s*(\[|\{|\"[^\"]*\"|'[^']*'|[^\s&;,\"'{}\[\]()]+)"
)
_VARIABLE = re.compile(r"oc\.env\s*:\s*(\w+)")
_DEFAULT = re.compile(r"oc\.(?:env|select)\s*:\s*([\w.]+)\s*,\s*([^}]*)")
_FILE = re.compile(
    r"(?:~|\.\.?)/[\w./ -]+|/(?:[\w.-]+/)*(?:\.\w+/[\w.-]+|[\w-]+\.(?:json|pem|key|crt|txt|ya?ml|p12|pub))"
)
_ONE = r"(?:[a-z]+|[A-Z]+|[A-Z][a-z]+)"
_WORDS = re.compile(
    rf"{_ONE}(?:[ ./_-]+{_ONE})*(?:_\d+)?|[\d.eE+-]{{1,7}}|__\w+__|(?:u?int|b?float|complex)\d+"  # types of columns
)
_REMEDY = (
    "values there stay in records, shell histories and lists of processes. Set a variable of the environment and write "
    "'${oc.env:NAME}' instead, which records keep as it is"
)


def names_secret(name: str) -> bool | None:
    """Whether a key or variable of this name holds a secret; None: its value decides.

    >>> [names_secret(name) for name in ("openaiApiKey", "tokenizer", "sort_key", "my_token", "key")]
    [True, False, False, True, None]
    """
    return _names_secret(name.rpartition(".")[2])


@functools.lru_cache(4096)
def _names_secret(name: str) -> bool | None:
    words = [word.lower() for word in _WORD.findall(name)]
    if words[:1] and words[0] in known.COUNTS and len(words) > 1:
        return False
    if tuple(words[-2:]) in known.CERTAIN_PAIRS:
        return True
    while len(words) > 1 and words[-1] in known.UNITS:
        words.pop()
    if not words:
        return False
    *before, last = words
    qualifier, singular = (before or [""])[-1], last.removesuffix("s")
    if last in known.CERTAIN or singular in known.CERTAIN or last.endswith(("password", "passwd", "apikey")):
        return True  # PGPASSWORD
    if singular not in known.OPEN and last not in known.OPEN:
        return False
    if qualifier in known.OF_SECRETS:
        return True
    if qualifier in known.OF_DATA or last not in known.OPEN:  # several of them, max_tokens
        return False
    return None


def is_secret(name: str, value: Any) -> bool:
    """Whether a single value that stands under `name` is one.

    >>> is_secret("api_key", 1234), is_secret("revision", "0" * 40), is_secret("url", "s3://me:word7@host/x")
    (True, False, True)
    """
    if value is None or isinstance(value, bool):
        return False
    text = without_variables(str(value)).strip() if isinstance(value, str) else str(value)
    if text.casefold() in known.NO_VALUES:
        return False
    if isinstance(value, str) and _looks_like_one(name, text):
        return True
    named = names_secret(name)
    if named and isinstance(value, str) and _FILE.fullmatch(text):
        return False
    if named and text != str(value).strip():  # around a variable: `Bearer ${oc.env:NAME}`
        named = None
    return bool(named) or (named is None and not _is_plain(value if not isinstance(value, str) else text))


def _looks_like_one(name: str, text: str) -> bool:
    if any(pattern.search(text) for pattern in known.PATTERNS):
        return True
    if known.GIT_OR_WANDB.fullmatch(text):
        return not known.OF_GIT & {word.lower() for word in _WORD.findall(name)}
    return any(
        names_secret(one[1]) is not False and is_secret(one[1].rpartition(".")[2], one[2].strip("\"'"))
        for one in _ASSIGNED.finditer(text)
        if one[1] != text
    )


def _is_plain(value: Any) -> bool:
    """A number that counts, or words: `fine_label`, `<pad>`, `inputs.image`, a path."""
    if not isinstance(value, str):
        return not isinstance(value, int) or abs(value) < 10**7
    if re.fullmatch(r"<[^>]*>|\[[^\]]*\]|[./~].*|\S*/\S*\.\w+|\W*", value) or len(value) <= 3:
        return True
    return _WORDS.fullmatch(value) is not None and not re.search(r"secret|passw", value, re.IGNORECASE)


def secrets_in(value: Any, key: str = "", *, below: bool | None = False) -> Iterator[str]:
    """The dotted keys of a nested config whose values are secrets, whatever their type.

    A text is searched for secrets in it, and for defaults of variables, `${oc.env:NAME,DEFAULT}`.

    Args:
        value: of the config, with variables of the environment unresolved.
        key: its dotted key.
        below: `names_secret` of the names above it.
    """
    name = key.rpartition(".")[2]
    if isinstance(value, Mapping):
        own = names_secret(name)
        yield from _secrets_of_dict(value, key, name, below if own is False else own)
    elif isinstance(value, (list, tuple)):
        yield from _secrets_of_list(value, key, name, below)
    elif is_secret(name, value) or _has_secret_default(name, value) or _is_secret_below(name, value, below):
        yield key


def _secrets_of_dict(value: Mapping[Any, Any], key: str, name: str, below: bool | None) -> Iterator[str]:
    if known.OF_WORDS & {word.lower() for word in _WORD.findall(name)}:  # label2id: its keys are data
        yield from secrets_in([*value.values()], key, below=below)
        return
    has_user = any(str(part).lower() in known.USERS for part in value)
    for part, inner in value.items():
        place = f"{key}.{part}" if key else str(part)
        is_open = names_secret(str(part)) is None and isinstance(inner, str)
        if (
            is_open
            and (has_user or (str(part) != "key" and names_secret(f"{name}_{part}")))
            and is_secret("password", inner)
        ):
            yield place  # {user: me, pass: word}, db: {pass: word}
        else:
            yield from secrets_in(inner, place, below=below)


def _secrets_of_list(values: Sequence[Any], key: str, name: str, below: bool | None) -> Iterator[str]:
    if name.lower() in known.PAIRS and len(values) == 2 and is_secret("password", values[1]):
        yield f"{key}.1"  # [user, password]
        return
    for number, inner in enumerate(values):
        is_leaf = not isinstance(inner, (Mapping, list, tuple))
        flag = values[number - 1] if number else None
        if is_leaf and isinstance(flag, str) and flag.startswith("--") and is_secret(flag.lstrip("-"), inner):
            yield f"{key}.{number}" if key else flag.lstrip("-")  # [--token, word]
            continue
        places = secrets_in(inner, key, below=below)
        yield from (f"{key}.{number}" if is_leaf and key else place for place in places)


def _is_secret_below(name: str, value: Any, below: bool | None) -> bool:
    """Whether a value in a dict with a name of secrets is one: `credentials={user: me, phrase: a1b2c3}`."""
    if below is False or name.lower() in known.BESIDE or isinstance(value, bool) or value is None:
        return False
    if isinstance(value, str):
        return is_secret("token", value)
    return below is True and names_secret(name) is False and abs(value) >= 1000


def _has_secret_default(name: str, value: Any) -> bool:
    if not isinstance(value, str):
        return False
    defaults = [(one[1], one[2].strip().strip("\"'")) for one in _DEFAULT.finditer(value)]
    return any(
        is_secret(variable, default) or is_secret(name, default)
        for variable, default in defaults
        if default and not default.startswith("${")
    )


def argument_problems(arguments: Sequence[str]) -> list[str]:
    """A sentence for each secret on a command line; its value is never repeated.

    >>> argument_problems(["seed=1", "--api-key", "abc", "model={kwargs: {hub_token: a1b2}}"])[0][:36]
    'api-key: looks like a secret, and va'
    """
    found = []
    for place, argument in enumerate(arguments):
        key, equals, value = argument.lstrip("+~-").partition("=")
        if argument.startswith("-") and not equals:
            value = next((one for one in arguments[place + 1 : place + 2] if not one.startswith("-")), "")
        name = key.partition("@")[0] if re.fullmatch(r"[\w./@:-]+", key) else ""
        values = [value, *value.split(",")] if equals else [value]  # of a sweep
        if any(True for _ in secrets_in(values, name)) or is_secret("", argument.lstrip("+~-")):
            shown = name if name and not is_secret("", name) else f"argument {place + 1}"
            found.append(f"{shown}: looks like a secret, and {_REMEDY}.")
    return found


def credential_problems(plain: Mapping[str, Any]) -> list[str]:
    """Values that look like a secret, each by its key; the value itself is never repeated.

    >>> credential_problems({"data": {"hf_token": "abc", "path": "a", "token": "${oc.env:TOKEN}"}})[0][:39]
    'data.hf_token: looks like a secret, and'
    """
    return [f"{key}: looks like a secret, and {_REMEDY}." for key in dict.fromkeys(secrets_in(plain))]


def variables_in(text: str) -> list[str]:
    """The variables of the environment that a text of a config reads."""
    return [found[1] for found in _VARIABLE.finditer(text)]


def without_variables(text: str) -> str:
    """A text without its interpolations, nested ones included."""
    before = None
    while before != text:
        before, text = text, re.sub(r"\\*\$\{[^${}]*\}", "", text)
    return text
