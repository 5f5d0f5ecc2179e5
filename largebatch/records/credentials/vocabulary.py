"""The words that mark a name as a secret's, or as harmless; and patterns of secrets."""

from __future__ import annotations

import re


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# The last words of a name that say it, with any value and in any spelling (apiKey, API_KEY, api-key).
CERTAIN = _words(
    "password passwd passphrase secret credential apikey accesskey secretkey privatekey authtoken accesstoken bearer "
    "authorization dsn connectionstring connstr sas jwt cookie passwort cred otp"
)
CERTAIN_PAIRS = {("connection", "string"), ("conn", "string"), ("conn", "str"), ("pass", "phrase"), ("pass", "word")}
# The last words that say it only together with the word before, or with a value that looks like it.
OPEN = _words("key token auth pass pwd pw")
OF_SECRETS = _words(
    "api access secret private auth account encryption signing openai anthropic wandb hf huggingface hub aws azure "
    "gcp google github gitlab slack stripe service license ssh deploy master client admin db database redis mongo "
    "postgres pg mysql smtp ftp ldap user my our bot refresh session bearer jwt oauth basic proxy s3 storage sas "
    "shared rsa gpg pgp tls ssl cert comet neptune kaggle mlflow clearml sentry datadog personal pat security "
    "registry docker npm pypi app application login root sudo subscription telegram discord cohere mistral "
    "replicate upload publish id hmac kms encrypt rediscli"
)
OF_DATA = _words(
    "sort sorting primary foreign random rng prng jax cache image img label text num input inputs output outputs "
    "target feature features data dict dataset set column col sample state batch group partition map meta metric "
    "monitor index lookup query question answer prompt caption audio video mask loss logits hidden memory order "
    "join row field json name weight mapping attention pad padding eos bos sep cls unk eot eod special stop start "
    "end begin prefix suffix first last next previous max min per forward backward low high band dim fill separator "
    "newline word sub speaker class layer counts labels position time edge node graph npz npy lmdb hdf h tar subset "
    "split ema teacher student params pretrained checkpoint ckpt model module task lang register blank space"
)
UNITS = _words("value text hex raw plain base encoded")  # behind the word that matters
COUNTS = _words("num n max min total count seen")  # before it
OF_GIT = _words(
    "revision rev commit sha hash digest checksum fingerprint version ref etag oid blob tree git name id tag tags group"
)
OF_WORDS = _words(
    "vocab vocabulary label labels class classes column columns dtypes features"
)  # of dicts: keys are data
USERS = frozenset({"user", "username", "login", "account", "user_name"})  # beside a name that is open
PAIRS = frozenset({"auth", "http_auth", "basic_auth"})  # of user and password
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
        r"\bsk-(?:(?:proj|ant|svcacct|admin|or|lf|None)-(?=[\w-]*\d)[\w-]{12,}|(?=[A-Za-z]*\d)[A-Za-z0-9]{16,})|\b[sr]k_(?:live|test)_\w{10,}|\bAIza[\w-]{30,}|\bdckr_pat_\w{16,}|\bnpm_\w{30,}",
        r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bx(?:ox[a-z]|app)-[\w-]{8,}|\bpypi-\w{16,}|\bSG\.[\w-]{16,}\.[\w-]{16,}",
        r"\beyJ[\w+/-]{16,}={0,2}(?:\.[\w-]+){0,2}",  # base64 of {" : web tokens, and keys that are JSON
        r"hooks\.slack\.com/services/[\w/]{8,}|/api/webhooks/\d+/[\w-]{8,}|\bya29\.[\w-]{16,}|(?<=/bot)\d{6,}:[\w-]{30,}",
        r"(?i)\bbearer\s+(?=[\w+/.~-]*[\d=])[\w+/.~-]{8,}={0,2}",
        r"(?i)(?<=\bauthorization)[\"']?\s*[:=]\s*[\"']?(?:[a-z]+\s+)?[\w+/.~-]{4,}={0,2}",
        r"(?<=\s-u)\s+[\w.+-]+:[^\s'\"]{4,}",  # of curl
        r"(?i)(?<=://)[^\s/:@'\"]*:(?!\d+/)[^\s@'\"]{1,200}(?=@(?!sha256:))",  # user:password@ in an address
        r"(?i)(?<=https://)(?=[^\s/:@]*\d)[\w.~-]{16,}(?=@)",
        r"(?<![\w/:@.+-])[\w.+-]+:(?![\d.e+-]+@)[^\s/:@,'\"]{4,}(?=@(?!sha256)"
        r"(?:[A-Za-z][\w.-]+|\d+(?:\.\d+){3})(?:[:/\s]|$))",
        r"(?i)(?<=[?&;])(?:[\w.-]*(?:token|secret|password|passwd|api_?key|access_?key|account_?key|signature|credential)"
        r"|sig|(?:auth|key)(?==[^\s&;]*\d))=[^\s&;'\"]{4,}",
        r"(?i)\b(?:SharedAccessKey|AccountKey|SharedAccessSignature|pwd)=[^\s;'\"]{4,}",
    )
]
