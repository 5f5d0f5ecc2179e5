"""The words by which a name tells that a secret stands under it, or that none does; and how secrets look."""

from __future__ import annotations

import re


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# The last words of a name that say it, with any value and in any spelling (apiKey, API_KEY, api-key).
CERTAIN = _words(
    "password passwd passphrase secret credential apikey accesskey secretkey privatekey authtoken accesstoken bearer "
    "authorization dsn connectionstring connstr sas jwt cookie"
)
CERTAIN_PAIRS = {("connection", "string"), ("conn", "string"), ("conn", "str"), ("pass", "phrase"), ("pass", "word")}
# The last words that say it only together with the word before, or with a value that looks like it.
OPEN = _words("key token auth pass pwd")
OF_SECRETS = _words(
    "api access secret private auth account encryption signing openai anthropic wandb hf huggingface hub aws azure "
    "gcp google github gitlab slack stripe service license ssh deploy master client admin db database redis mongo "
    "postgres pg mysql smtp ftp ldap user my our bot refresh session bearer jwt oauth basic proxy s3 storage sas "
    "shared rsa gpg pgp tls ssl cert comet neptune kaggle mlflow clearml sentry datadog personal pat security "
    "registry docker npm pypi app application login root sudo subscription telegram discord cohere mistral "
    "replicate upload publish id"
)
OF_DATA = _words(
    "sort sorting primary foreign random rng prng jax cache image img label text num input inputs output outputs "
    "target feature features data dict dataset set column col sample state batch group partition map meta metric "
    "monitor index lookup query question answer prompt caption audio video mask loss logits hidden memory order "
    "join row field json name weight mapping attention pad padding eos bos sep cls unk eot eod special stop start "
    "end begin prefix suffix first last next previous max min per forward backward low high band dim fill separator "
    "newline word sub speaker class layer counts labels position time edge node graph"
)
UNITS = _words("value text hex raw plain base encoded")  # behind the word that matters
COUNTS = _words("num n max min total use has is count seen")  # before it
OF_GIT = _words("revision rev commit sha hash digest checksum fingerprint version ref etag oid blob tree git")
BESIDE = _words(  # in a dict below a name of secrets
    "type kind provider region profile user username path file host port scheme method endpoint url uri scope scopes "
    "project enabled"
)
NO_VALUES = _words("none null empty dummy anonymous true false ??? ... ***") | {""}
GIT_OR_WANDB = re.compile(r"(local-)?[0-9a-f]{40}")
PATTERNS = [
    re.compile(pattern)
    for pattern in (
        r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?:[\s\S]*?-----END [A-Z ]*PRIVATE KEY-----|[\s\S]*)",
        r"\b(?:hf|api_org)_[A-Za-z0-9]{16,}",
        r"\bgithub_pat_\w{16,}|\bgh[pousr]_[A-Za-z0-9]{16,}|\bglpat-[\w-]{16,}|\bwandb_v\d_\w{16,}",
        r"\bsk-(?=[\w-]*\d)[\w-]{16,}|\b[sr]k_(?:live|test)_\w{10,}|\bAIza[\w-]{30,}|\bdckr_pat_\w{16,}|\bnpm_\w{30,}",
        r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bxox[a-z]-[\w-]{8,}|\bpypi-\w{16,}|\bSG\.[\w-]{16,}\.[\w-]{16,}",
        r"\beyJ[\w+/-]{16,}={0,2}(?:\.[\w-]+){0,2}",  # base64 of {" : web tokens, and keys that are JSON
        r"hooks\.slack\.com/services/[\w/]{16,}",
        r"(?i)\b(?:bearer|basic)\s+(?=[\w+/.~-]*[\d=])[\w+/.~-]{8,}={0,2}",
        r"(?i)(?<=://)[^\s/:@'\"]*:[^\s/@'\"]+(?=@)",  # user:password@, and a token alone, in an address
        r"(?i)(?<=https://)(?=[^\s/:@]*\d)[\w.~-]{16,}(?=@)",
        r"(?<![\w/:@-])[\w.+-]+:[^\s/:@,'\"]{4,}(?=@(?!sha256)(?:[A-Za-z][\w.-]+|\d+(?:\.\d+){3})(?:[:/\s]|$))",
        r"(?i)(?<=[?&;])(?:[\w.-]*(?:token|secret|password|passwd|api_?key|access_?key|account_?key|signature|credential)"
        r"|sig|auth|key)=[^\s&;'\"]{4,}",
        r"(?i)\b(?:SharedAccessKey|AccountKey|SharedAccessSignature|pwd)=[^\s;'\"]{4,}",
    )
]
