"""Passwords and keys that were written into a config: they would end in config.yaml, overrides.txt and W&B."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

# Whole names: `pad_token` and `tokenizer` are none.
_NAMES = re.compile(
    r"(api|access|secret|auth|hf|wandb|aws_access|aws_secret|private)?_?(api_?key|access_?key|secret_?key|private_?key"
    r"|secret|password|passwd|auth_?token|access_?token|hf_?token|token)",
    re.IGNORECASE,
)
# What keys of W&B, Hugging Face, GitHub, OpenAI and AWS look like, and a password within an address.
_VALUES = (
    re.compile(r"[0-9a-f]{40}"),
    re.compile(r"(hf|ghp|gho|wandb_v1)_[A-Za-z0-9_]{20,}"),
    re.compile(r"sk-[A-Za-z0-9_-]{20,}"),
    re.compile(r"AKIA[0-9A-Z]{16}"),
    re.compile(r"[a-z][a-z0-9+.-]*://[^/\s:@]+:[^/\s@]+@.*", re.IGNORECASE),
)
_COMMITS = ("revision", "commit", "sha")  # 40 hexadecimal digits of git


def credential_problems(config: DictConfig) -> list[str]:
    """Values that look like a secret, each by its key; the value itself is never repeated.

    What is read from the environment, `${oc.env:NAME}`, is none: records keep it unresolved.

    >>> credential_problems(OmegaConf.create({"data": {"hf_token": "abc", "path": "a", "token": "${oc.env:TOKEN}"}}))
    ['data.hf_token: looks like a secret, and configs are kept in records. Write ${oc.env:NAME} instead.']
    """
    return [
        f"{key}: looks like a secret, and configs are kept in records. Write ${{oc.env:NAME}} instead."
        for key, value in _texts(OmegaConf.to_container(config, resolve=False))
        if _is_secret(key, value)
    ]


def _is_secret(key: str, value: str) -> bool:
    if "${" in value or not value:
        return False
    name = key.rpartition(".")[2]
    if name in _COMMITS:
        return False
    return bool(_NAMES.fullmatch(name)) or any(one.fullmatch(value) for one in _VALUES)


def _texts(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _texts(part, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list):
        for number, part in enumerate(value):
            yield from _texts(part, f"{prefix}.{number}")
    elif isinstance(value, str):
        yield prefix, value
