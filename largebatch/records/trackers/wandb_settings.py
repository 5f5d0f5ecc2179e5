"""The settings of W&B, by precedence: given values, W&B's own variables and files, our defaults.

W&B reads its variables itself, but an argument of `wandb.init` wins over them: a default of ours must not be one.
"""

from __future__ import annotations

import netrc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

PUBLIC_SERVER = "https://api.wandb.ai"
MODES = ("auto", "online", "offline", "disabled")
_INIT_TIMEOUT_S = 15
_FINISH_TIMEOUT_S = 60
VARIABLES = {
    "project": "WANDB_PROJECT",
    "entity": "WANDB_ENTITY",
    "name": "WANDB_NAME",
    "group": "WANDB_RUN_GROUP",
    "job_type": "WANDB_JOB_TYPE",
    "notes": "WANDB_NOTES",
    "tags": "WANDB_TAGS",
    "id": "WANDB_RUN_ID",
    "dir": "WANDB_DIR",
}
# What W&B refuses: characters of names, and other values of its variables.
_FORBIDDEN = {"project": "/\\#?%:", "id": ":;,#?/'"}
_LONGEST_PROJECT, _LONGEST_TAG = 128, 64
_ALLOWED = {
    "WANDB_RESUME": ("allow", "must", "never", "auto", "true", "false", "1", "0"),
    "WANDB_CONSOLE": ("auto", "off", "wrap", "redirect", "wrap_raw", "wrap_emu"),
}
_TRUE = ("1", "true", "yes", "on", "y", "t")
_MODE_NAMES = {"run": "online", "dryrun": "offline"} | {mode: mode for mode in MODES[1:]}


def identity(
    given: Mapping[str, Any], defaults: Mapping[str, Any], files: Mapping[str, Any], environ: Mapping[str, str]
) -> tuple[dict[str, Any], list[str]]:
    """The arguments of `wandb.init` that identify the run, and the variables that were used.

    Args:
        given: by key of `VARIABLES`; None where nothing was given.
        defaults: ours.
        files: values of W&B's settings files.
        environ: the environment.
    """
    chosen: dict[str, Any] = {}
    used = []
    for key, variable in VARIABLES.items():
        value = given.get(key)
        if value is None and (text := environ.get(variable)):
            value = [tag.strip() for tag in text.split(",")] if key == "tags" else text
            used.append(variable)
        chosen[key] = next((one for one in (value, files.get(key), defaults.get(key)) if one is not None), None)
    return chosen, used


def naming_problems(given: Mapping[str, Any], environ: Mapping[str, str]) -> list[str]:
    """A sentence for each name that W&B would refuse at the start of the run; arguments as in `identity`."""
    chosen, used = identity(given, {}, {}, environ)
    source = {key: name if name in used else f"logger.wandb.{key}" for key, name in VARIABLES.items()}
    problems = [
        f"{source[key]}={chosen[key]}: W&B allows none of {signs} in it. Write another, or unset it."
        for key, signs in _FORBIDDEN.items()
        if set(chosen[key] or "") & set(signs)
    ]
    if len(chosen["project"] or "") > _LONGEST_PROJECT:
        problems.append(f"{source['project']}: W&B allows {_LONGEST_PROJECT} characters, not {len(chosen['project'])}.")
    problems += [
        f"{source['tags']}: {tag!r} has {len(tag)} characters, and W&B allows 1 to {_LONGEST_TAG} in a tag."
        for tag in chosen["tags"] or []
        if not 1 <= len(tag) <= _LONGEST_TAG
    ]
    return problems + [
        f"{name}={environ[name]}: W&B knows {', '.join(values[:6])}. Choose one of them, or unset it."
        for name, values in _ALLOWED.items()
        if environ.get(name) and environ[name].lower() not in values
    ]


def mode_of(mode: str, environ: Mapping[str, str], files: Mapping[str, Any] | None = None) -> str:
    """The mode that the configuration, W&B's variables or its files ask for; "auto" if none of them does.

    Raises:
        ValueError: for a mode that does not exist.
    """
    if mode not in MODES:
        raise ValueError(f"W&B mode {mode!r} does not exist. Choose one of {', '.join(MODES)}.")
    if mode != "auto":
        return mode
    if environ.get("WANDB_DISABLED", "").lower() in _TRUE:
        return "disabled"
    if named := environ.get("WANDB_MODE", "").lower():
        if named not in _MODE_NAMES:
            raise ValueError(f"WANDB_MODE={named}: use online, offline or disabled, or unset it. Rank 0 alone logs.")
        return _MODE_NAMES[named]
    return _MODE_NAMES.get(str((files or {}).get("mode")), "auto")


def settings(known: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """How W&B behaves, but for what its variables say.

    Args:
        known: the settings that this release of W&B has.
        environ: the environment.
    """
    wanted: dict[str, Any] = {
        "x_disable_meta": True,  # the command line may hold a secret, and W&B would store it
        "host": "",  # its name may say whose it is
        "save_code": False,
        "disable_git": True,  # a remote's address may hold a token
        "silent": True,
        "console": "off",
        "init_timeout": _INIT_TIMEOUT_S,
        "finish_timeout": _FINISH_TIMEOUT_S,  # wandb < 0.27 waits for its uploads for ever
        "finish_timeout_raises": True,
        "reinit": "create_new",  # a run that the user has opened stays open
    }
    return {
        name: value
        for name, value in wanted.items()
        if name in known and not any(environ.get(f"WANDB_{one.upper()}") for one in (name, name.removeprefix("x")))
    }


def read_settings_files(wandb: Any) -> dict[str, Any]:
    """The settings that `wandb init`, `wandb offline` and the like have written into files."""
    try:
        found = wandb.setup().settings
        return {name: getattr(found, name) for name in ("mode", "project", "entity") if name in found.model_fields_set}
    except Exception:  # whatever is wrong with them, `wandb.init` says it
        return {}


def server_of(wandb: Any) -> str:
    """The address that wandb will use: the environment, then its settings files, then the public server."""
    if address := os.environ.get("WANDB_BASE_URL"):
        return address
    try:
        return str(wandb.setup().settings.base_url)
    except Exception:
        return PUBLIC_SERVER


def provide_home(folder: Path) -> None:
    """Where there is no home to write to, as in many containers, W&B would lose the run: it gets folders beside it."""
    try:
        if os.access(Path.home(), os.W_OK):
            return
    except RuntimeError:  # neither HOME nor an entry for this user
        pass
    for name in ("config", "cache", "data"):
        place = str((folder / "wandb" / name).absolute())
        os.environ.setdefault(f"WANDB_{name.upper()}_DIR", place)
        os.environ.setdefault(f"XDG_{name.upper()}_HOME", place)  # which W&B asks for even if it has the other


def key_source(server: str = PUBLIC_SERVER) -> str | None:
    """Where a W&B credential for `server` is configured: a variable's name or a netrc file's path; None if nowhere.

    Looks where wandb looks, but never prompts, and the key itself is not returned.
    """
    for variable in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        if os.environ.get(variable):
            return variable
    named = os.environ.get("NETRC")
    for path in [Path(named)] if named else [Path("~/.netrc"), Path("~/_netrc")]:
        try:
            path = path.expanduser()
            entry = netrc.netrc(str(path)).authenticators(urlsplit(server).netloc)
        except (OSError, RuntimeError, netrc.NetrcParseError):  # RuntimeError: there is no home
            continue
        if entry and entry[2]:
            return str(path)
    return None
