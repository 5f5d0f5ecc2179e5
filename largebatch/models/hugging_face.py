"""Models of the Hugging Face hub, built by name."""

from __future__ import annotations

from typing import Any

from torch import nn


def hugging_face(
    auto_class: str, name: str, *, pretrained: bool = True, revision: str | None = None, **config_overrides: Any
) -> nn.Module:
    """A `transformers` model, in training mode, with pretrained or fresh weights.

    Only architectures that are part of `transformers` are built. Code from a repository of the hub is never run, and
    no option changes that.

    Args:
        auto_class: a class of `transformers` that starts with "AutoModel", e.g. "AutoModelForCausalLM".
        name: repository on the hub ("gpt2") or local folder.
        pretrained: False draws fresh weights for the same architecture, from torch's global generator.
        revision: commit, tag or branch of the repository. Only a commit makes a run reproducible.
        **config_overrides: fields of the model's configuration, e.g. `n_layer=4`.

    Raises:
        ImportError: without the package `transformers`.
        ValueError: if `auto_class` is unknown, or an override is not a field of this model's configuration.
    """
    if "trust_remote_code" in config_overrides:
        raise ValueError(
            "trust_remote_code is not supported: it runs code from the hub on every machine of the job. Review that "
            "code, keep it as a module of your own, and name its class as the model."
        )
    transformers = _import_transformers()
    model_class = getattr(transformers, auto_class, None) if auto_class.startswith("AutoModel") else None
    if model_class is None:
        raise ValueError(
            f"auto_class={auto_class!r}: must be a class of transformers whose name starts with AutoModel, "
            f"e.g. AutoModelForCausalLM or AutoModelForImageClassification."
        )
    source = {} if revision is None else {"revision": revision}
    config, unused = transformers.AutoConfig.from_pretrained(
        name, return_unused_kwargs=True, **source, **config_overrides
    )
    if unused:
        raise ValueError(
            f"{', '.join(sorted(unused))}: no such field in {type(config).__name__}, the configuration of {name!r}, so "
            f"the override would have no effect. Correct the name or remove it."
        )
    _refuse_kernels_of_the_hub(config)
    if pretrained:
        model: nn.Module = model_class.from_pretrained(name, config=config, **source)
    else:
        model = model_class.from_config(config, trust_remote_code=False)
    return model.train()


def _refuse_kernels_of_the_hub(config: Any) -> None:
    """Check the overrides and the repository's own config.json, for the model and its parts."""
    for name in ("_attn_implementation", "_experts_implementation"):
        chosen = str(getattr(config, name, None))
        if "/" in chosen:
            raise ValueError(
                f"{name.removeprefix('_')}={chosen} fetches code from the hub, which is never run here. Choose one of "
                "transformers' own, such as sdpa or eager."
            )
    for part in vars(config).values():
        if hasattr(part, "_attn_implementation"):
            _refuse_kernels_of_the_hub(part)


def _import_transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            "A Hugging Face model was named, but the package transformers cannot be imported. "
            'Install it with: pip install "largebatch[hf]"'
        ) from error
    return transformers
