"""Suggest the closest valid name for one that does not exist: a misspelling, or another tool's word for it.

A suggestion must not lead to another experiment. So digits are never corrected (resnet34 is not resnet18), short words
hardly, and a word that merely looks alike is no suggestion: `data.batch_size` is not `scaling.base_batch_size`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

MOST_SUGGESTED = 3
_SHORTEST_WORD = 3  # of which the beginning says enough

# Names of our keys in other tools. `{value}` is the given value.
_RATE = (
    "The rate is scaling.base_lr, for a batch of scaling.base_batch_size samples; scaling.rule scales it to "
    "batch.total. With scaling=none, scaling.base_lr={value} is the peak rate itself."
)
_BATCH = "The batch is batch.total, in samples of one optimizer step over all ranks."
_MICRO = (
    "batch.total is the batch of all ranks; batch.max_micro={value} limits the samples of one forward pass, and "
    "accumulation follows from both."
)
_RANKS = "The launcher sets the number of processes: torchrun --nproc-per-node {value} -m largebatch ..."
_PRECISION = "Write precision=bf16, precision=fp16, precision=fp32 or precision=fp64."
_LOCAL_RANK = "Ranks are known from the environment: start with torchrun, or with `deepspeed --no_local_rank`."
_GUESSES = {
    "lr learning_rate max_lr peak_lr initial_lr init_lr blr": _RATE,
    "epochs epoch num_epochs max_epochs n_epochs total_epochs num_train_epochs": "Write length={value}ep.",
    "steps max_steps num_steps total_steps train_steps max_iters num_iters iterations": "Write length={value}steps.",
    "batch_size bs batchsize global_batch_size total_batch_size train_batch_size batch_tokens tokens": _BATCH,
    "micro_batch_size per_device_train_batch_size per_device_batch_size per_gpu_batch_size device_batch_size": _MICRO,
    "gradient_accumulation_steps accumulate_grad_batches grad_accum accumulation accumulation_steps accum_steps": (
        "Accumulation follows from batch.total, the ranks and batch.max_micro, the most samples of one forward pass."
    ),
    "wd decay": "Write optimizer.weight_decay={value}; the decay of the rate is chosen with schedule=NAME.",
    "warmup_epochs": "Write schedule.warmup={value}ep.",
    "warmup_steps num_warmup_steps warmup_iters": "Write schedule.warmup={value}steps.",
    "warmup_ratio": "Write schedule.warmup=Nep or Nsteps.",
    "scheduler lr_scheduler lr_scheduler_type": "Write schedule=NAME.",
    "grad_clip clip grad_norm max_grad_norm max_norm clip_grad clip_grad_norm gradient_clip_val gradient_clipping": (
        "Write clip_norm={value}."
    ),
    "fp16 bf16 amp dtype mixed_precision": _PRECISION,
    "output_dir out_dir save_dir log_dir run_dir exp_dir logdir": "Write run.dir={value}.",
    "run_name exp_name experiment_name": "Write run.name={value}.",
    "resume_from resume_from_checkpoint ckpt ckpt_path checkpoint": "Write resume={value}.",
    "gradient_checkpointing": "Write precision.activation_checkpointing={value}.",
    "devices gpus num_gpus ngpus n_gpu nproc num_processes nproc_per_node world_size": _RANKS,
    "local_rank": _LOCAL_RANK,
    "arch net network backbone model_name": "Write model=NAME.",
    "dataset dataset_name": "Write data=NAME.",
    "data_dir data_path data_root dataset_path": "Write data=NAME data.path={value}.",
    "opt optim": "Write optimizer=NAME.",
    "workers": "Write data.num_workers={value}.",
    "random_seed manual_seed": "Write seed={value}.",
    "eval_every eval_interval eval_steps val_interval val_every": "Write observers.evaluation.every={value}steps.",
    "save_every save_steps save_interval": "Write observers.checkpoint.every={value}steps.",
    "wandb_project": "Write logger.wandb.project={value}.",
}
_SENTENCES = {word: sentence for words, sentence in _GUESSES.items() for word in words.split()}
# Sections in which these words mean the same as alone.
_PLAIN_SECTIONS = {
    "trainer", "training", "train", "args", "hparams", "params", "config", "cfg", "run", "optim", "optimizer", "data",
    "dataset", "dataloader", "loader", "datamodule", "scheduler", "lr_scheduler", "schedule", "batch", "scaling",
    "logger",
}  # fmt: skip
# Exact synonyms of choices.
_SAME = {
    "image_folder": "imagenet",
    "cross_entropy": "ce xent",
    "next_token": "lm clm causal_lm language_modeling",
    "info_nce": "nt_xent ntxent simclr contrastive",
    "sqrt": "square_root root",
    "step": "multistep multi_step step_lr",
    "bf16": "bfloat16 bf16-mixed bf16_mixed",
    "fp16": "float16 half 16-mixed 16_mixed",
    "fp32": "float32 single",
    "fp64": "float64 double",
    "tensorboard": "tb",
    "hugging_face": "hf transformers",
}
_CHOICES = {word: choice for choice, words in _SAME.items() for word in words.split()}
_NO_SLIPS = {"adam"}  # other methods, one letter away from one of ours


def did_you_mean(given: str, names: Iterable[str]) -> str:
    """A suggestion with a leading blank, to append to an error; empty if no name is close.

    >>> did_you_mean("trian", ["plan", "train"])
    " Did you mean 'train'?"
    >>> did_you_mean("resnet", ["resnet18", "resnet50", "mlp"])
    " Did you mean 'resnet18' or 'resnet50'?"
    >>> did_you_mean("resnet34", ["resnet18", "resnet50", "mlp"])
    ''
    """
    close = nearest(given, list(names))
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""


def nearest(given: str, names: Sequence[str]) -> list[str]:
    """The names that `given` misspells, is a synonym of, or is a part of; at most `MOST_SUGGESTED`."""
    if given.casefold() in _NO_SLIPS:
        return []
    close = [name for name in names if _CHOICES.get(given.casefold()) == name] or _closest(given, names)
    close = close or [name for name in names if _is_part(given, name)]
    return close if len(close) <= MOST_SUGGESTED else []


def meant_by_key(given: str, names: Sequence[str], value: str = "") -> str:
    """Suggest a replacement for a key that does not exist; empty without a suggestion.

    Args:
        given: the dotted key.
        names: all dotted keys.
        value: the given value.

    >>> meant_by_key("trainer.max_epochs", ["length", "seed"], "10")
    'Write length=10ep.'
    >>> meant_by_key("wandb.project", ["logger.wandb.project", "seed"])
    "Did you mean 'logger.wandb.project'?"
    """
    given = re.sub(r"[-\s]", "_", given.lstrip("-").casefold())
    *sections, last = given.split(".")
    inside = [name for name in names if name.endswith(f".{given}")]
    if last in _SENTENCES and _PLAIN_SECTIONS.issuperset(sections):
        return _SENTENCES[last].format(value=value or "N")
    close = inside if len(inside) == 1 else _closest(given, names)
    return f"Did you mean {' or '.join(map(repr, close))}?" if 0 < len(close) <= MOST_SUGGESTED else ""


def _closest(given: str, names: Iterable[str]) -> list[str]:
    apart = {name: edits for name in names if (edits := _edits(given, name)) is not None}
    return [name for name, edits in apart.items() if edits == min(apart.values())]


def _edits(given: str, name: str) -> int | None:
    """Edits between two names, word by word; None if a word needs too many, that is, for different names."""
    given, name = given.casefold(), name.casefold()
    if re.findall(r"\d+", given) != re.findall(r"\d+", name):
        return None
    words, others = _words(given), _words(name)
    if len(words) != len(others):  # written apart, or in one
        edits = _distance("".join(words), "".join(others))
        return edits if edits == 0 else None
    apart = [_distance(word, other) for word, other in zip(words, others, strict=True)]
    allowed = [_slips(min(len(word), len(other))) for word, other in zip(words, others, strict=True)]
    return sum(apart) if all(one <= most for one, most in zip(apart, allowed, strict=True)) else None


def _slips(letters: int) -> int:
    return 0 if letters < _SHORTEST_WORD else 1 if letters < 8 else 2


def _is_part(given: str, name: str) -> bool:
    """Whether every word of `given` is one of `name`, or begins one."""
    words, others = _words(given.casefold()), _words(name.casefold())
    return len(given) >= _SHORTEST_WORD and all(
        word in others or (len(word) >= _SHORTEST_WORD and any(other.startswith(word) for other in others))
        for word in words
    )


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[^0-9a-z]+", name) if word]


def _distance(one: str, other: str) -> int:
    """Insertions, deletions, replacements and swaps of neighbours (optimal string alignment)."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        before, last, row = row, before, [i]
        for j, letter_2 in enumerate(other, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != letter_2))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == letter_2:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
    return row[-1]
