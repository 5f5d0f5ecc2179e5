"""Every key of metrics.jsonl: its unit, its meaning, the config key that enables it, and its cost; as in the README."""

from __future__ import annotations

from collections.abc import Iterable

from largebatch.records.metric_family import MetricFamily, MetricKey
from largebatch.records.metric_family import family as _family

_WHERE = ", where it follows the batch"
_FOLLOWS = f"{_WHERE}; of the first parameter group that has one"

METRIC_FAMILIES = (
    _family(
        "",
        "none",
        ("step", "steps", "optimizer steps done"),
        ("samples_seen", "samples", "samples consumed; the x axis in W&B and of all pictures"),
        ("epoch", "epochs", "`samples_seen` over the size of the training set"),
        ("wall_s", "s", "seconds since this process began to train; restarts at zero after a resume"),
    ),
    _family(
        "observers.metrics.every",
        "one small all-reduce per step, read one step later; in the step of a row the host waits for a GPU three times",
        ("train/loss", "loss per sample or token", "mean over the step's whole global batch, before the update"),
        ("train/lr", "-", "learning rate of the step; groups with factors multiply it"),
        ("train/global_batch_size", "samples", "samples of the step; changes in a batch-size ramp only"),
        ("train/grad_norm", "L2 norm", "norm of the global gradient before clipping"),
        ("train/samples_per_s", "samples/s", "throughput of all ranks together, over the steps since the last row"),
        ("train/tokens_per_s", "tokens/s", "the same in tokens, where every sample has as many"),
        ("train/tokens_per_s_per_device", "tokens/s", "the same over the number of ranks"),
        ("train/mfu", "share", "model FLOPs utilisation; absent where the device's peak is unknown"),
        ("time/step_s", "s", "mean time of a step since the last row, observers left out"),
        ("time/data_s", "s", "the part of `time/step_s` in which rank 0 waits for data"),
        ("time/communication_s", "s", "communication that no computation hides, in this row's step"),
        ("time/compute_s", "s", "the rest of `time/step_s`"),
        ("memory/peak_bytes", "bytes", "peak so far of rank 0: tensors on a GPU, the resident process on a CPU"),
    ),
    _family("scaling.momentum", "none", ("train/momentum", "share", f"that a step keeps of the velocity{_FOLLOWS}")),
    _family(
        "scaling.betas",
        "none",
        ("train/beta1", "share", f"that a step keeps of the first moment{_FOLLOWS}"),
        ("train/beta2", "share", f"that a step keeps of the second moment{_FOLLOWS}"),
    ),
    _family("scaling.eps", "none", ("train/eps", "-", f"beside the root of the second moment{_FOLLOWS}")),
    _family("scaling.weight_decay", "none", ("train/weight_decay", "-", f"weight decay of the step{_FOLLOWS}")),
    _family(
        "scaling.clip_norm",
        "none",
        ("train/clip_norm", "L2 norm", f"largest norm of the gradient{_WHERE}"),
    ),
    _family(
        "observers.evaluation.every",
        "one forward pass over each of the two sets",
        ("eval/train_loss", "loss per sample or token", "mean on a fixed training subset, as large as validation"),
        ("eval/val_loss", "loss per sample or token", "mean on the validation set, each example exactly once"),
        ("eval/train_accuracy", "share", "correct predictions on the training subset"),
        ("eval/val_accuracy", "share", "correct predictions on the validation set"),
        ("eval/val_accuracy_stderr", "share", "standard error of `eval/val_accuracy`"),
        ("gap/loss", "loss per sample or token", "`eval/val_loss` minus `eval/train_loss`"),
        ("gap/loss_stderr", "loss per sample or token", "standard error of `gap/loss`"),
        ("gap/accuracy", "share", "`eval/train_accuracy` minus `eval/val_accuracy`"),
        ("gap/accuracy_stderr", "share", "standard error of `gap/accuracy`"),
        ("gap/is_augmented", "1", "present where a set augments by itself: the gap then includes the augmentation"),
        ("eval/seconds", "s", "time of the evaluation"),
        ("eval/train_skipped", "samples", "samples left out of the training subset (`data.on_bad_sample=skip`)"),
        ("eval/val_skipped", "samples", "samples left out of the validation set (`data.on_bad_sample=skip`)"),
    ),
    _family(
        "metrics",
        "their computation in every evaluation",
        ("eval/train_METRIC", "the metric's", "on the training subset"),
        ("eval/val_METRIC", "the metric's", "on the validation set, each example exactly once"),
        ("gap/METRIC", "the metric's", "how much worse it is on the validation set"),
        ("eval/ema_val_METRIC", "the metric's", "`eval/val_METRIC` of the averaged weights (`ema`)"),
    ),
    _family(
        "ema",
        "one more forward pass over the validation set per evaluation; one read and write of the weights per update",
        ("eval/ema_val_loss", "loss per sample or token", "`eval/val_loss` of the averaged weights"),
        ("eval/ema_val_accuracy", "share", "`eval/val_accuracy` of the averaged weights"),
        ("eval/ema_val_accuracy_stderr", "share", "standard error of `eval/ema_val_accuracy`"),
    ),
    _family(
        "observers.noise_scale.geometry",
        "as much again as the Euclidean noise scale: 3.4 % more of a run at every=10 (AdamW, MLP, 6.2 ms per step)",
        (
            "noise_scale/optimizer/b_simple",
            "samples",
            "noise scale tr(P Sigma) / G'PG with the optimizer's preconditioner P; see diagnostics",
        ),
        ("noise_scale/optimizer/ci_low", "samples", "lower end of its 95 % interval"),
        ("noise_scale/optimizer/ci_high", "samples", "upper end of its 95 % interval"),
        ("noise_scale/optimizer/trace", "loss per rate", "tr(P Sigma); running mean"),
        (
            "noise_scale/optimizer/grad_sq_norm",
            "loss per rate",
            "G'PG: decrease of the loss per unit of the rate; running mean",
        ),
        ("noise_scale/optimizer/GROUP/b_simple", "samples", "the same of one group"),
        ("noise_scale/optimizer/GROUP/ci_low", "samples", "the same of one group"),
        ("noise_scale/optimizer/GROUP/ci_high", "samples", "the same of one group"),
        ("noise_scale/optimizer/GROUP/trace", "loss per rate", "the same of one group"),
        ("noise_scale/optimizer/GROUP/grad_sq_norm", "loss per rate", "the same of one group"),
    ),
    _family(
        "observers.noise_scale.every",
        "0.04 to 4.9 % of a run at every=10; 12.6 % with batch norm and a single micro-batch",
        ("noise_scale/b_simple", "samples", "gradient noise scale tr(Sigma) / |G|^2 (McCandlish et al. 2018)"),
        ("noise_scale/ci_low", "samples", "lower end of its 95 % interval"),
        ("noise_scale/ci_high", "samples", "upper end of its 95 % interval"),
        ("noise_scale/trace", "squared gradient", "tr(Sigma): variance of the gradient of one sample; running mean"),
        ("noise_scale/grad_sq_norm", "squared gradient", "|G|^2, unbiased, so it may be negative; running mean"),
        ("noise_scale/sample_efficiency", "share", "samples that a small batch would need, over those of this batch"),
        ("noise_scale/step_efficiency", "share", "steps that a huge batch would need, over those of this batch"),
        ("noise_scale/GROUP/b_simple", "samples", "noise scale of one group (`observers.noise_scale.groups`)"),
        ("noise_scale/GROUP/ci_low", "samples", "lower end of its 95 % interval"),
        ("noise_scale/GROUP/ci_high", "samples", "upper end of its 95 % interval"),
        ("noise_scale/GROUP/trace", "squared gradient", "tr(Sigma) of the group; the groups' traces add up"),
        ("noise_scale/GROUP/grad_sq_norm", "squared gradient", "|G|^2 of the group"),
    ),
    _family(
        "observers.sharpness.every",
        "4.2 s per measurement (digits convnet, 512 samples, 2 CPU ranks); 43 s (CIFAR-10 convnet)",
        ("sharpness/lambda_max", "loss / weight^2", "largest Hessian eigenvalue (Lanczos)"),
        ("sharpness/lambda_max_residual", "loss / weight^2", "Lanczos residual: bounds its error"),
        ("sharpness/trace", "loss / weight^2", "Hessian trace (Hutchinson)"),
        ("sharpness/trace_stderr", "loss / weight^2", "standard error of `sharpness/trace`"),
        ("sharpness/m_sharpness", "loss", "rise of the loss along SAM's ascent step, within m samples each"),
        ("sharpness/m_sharpness_stderr", "loss", "standard error of `sharpness/m_sharpness`"),
    ),
    _family(
        "observers.communication.every",
        "two time stamps and 16 bytes per bucket; every tenth time about ten all-reduces, outside the step's time",
        ("communication/total_s", "s", "time in which buckets of the gradient were being reduced"),
        ("communication/exposed_s", "s", "the part of it that no computation hides"),
        ("communication/hidden_share", "share", "the rest of it, over the total"),
        ("communication/share_of_step", "share", "exposed part over the time of the step"),
        ("communication/straggler_wait_s", "s", "wait of the fastest rank for the slowest, no time of the network"),
        ("communication/slowest_rank", "rank", "the rank that the others waited for"),
        ("communication/gradient_bytes", "bytes", "size of the gradient that each rank sends"),
        ("communication/predicted_s", "s", "prediction by latency and bandwidth for these buckets in turn"),
        ("communication/latency_s", "s", "latency of an all-reduce, by a line through several sizes"),
        ("communication/bandwidth_bytes_per_s", "bytes/s", "bandwidth of an all-reduce, by the same line"),
    ),
    _family(
        "observers.stragglers.ratio",
        "an all-reduce of 8 bytes per rank in each logged step",
        ("stragglers/slowest_rank", "rank", "the rank that took longest in this step, its waits left out"),
        ("stragglers/ratio", "ratio", "its time over the median of the others, in proportion to its samples"),
    ),
    _family(
        "observers.layers.every",
        "in measured steps a copy of the weights and about one optimizer step, on rank 0",
        *(
            (f"{name}/{place}", "ratio", f"{of}; {place} over {over}")
            for name, of, over in (
                ("update_to_weight", "|update| / |weight|", "all tensors with a gradient"),
                ("trust_ratio", "trust ratio of LARS or LAMB", "the tensors that adapt"),
            )
            for place in ("min", "q25", "median", "q75", "max")
        ),
        ("trust_ratio/clipped_share", "share", "adapting tensors whose ratio a bound of the formula set"),
        ("trust_ratio/fallback_share", "share", "adapting tensors whose ratio is 1 because a norm was 0"),
    ),
    _family(
        "guard.policy",
        "every step waits for its loss: 1.10 times a step of 22 ms, 1.34 times a step of 4 ms",
        ("guard/bad", "steps", "bad steps since the run began"),
        ("guard/skipped", "steps", "skipped steps since the run began"),
        ("guard/rolled_back", "steps", "steps rolled back to a checkpoint since the run began"),
        ("guard/overflows", "steps", "overflows of fp16 loss scaling since the run began; neither good nor bad"),
        ("guard/loss", "loss per sample or token", "loss of a bad step"),
        ("guard/loss_limit", "loss per sample or token", "above this a loss was bad in that step"),
        ("guard/grad_norm", "L2 norm", "gradient norm of a bad step"),
        ("guard/grad_norm_limit", "L2 norm", "above this a gradient norm was bad in that step"),
    ),
    _family(
        "batch.ramp.by",
        "a small broadcast per measurement of the noise scale",
        ("batch/grown_to", "samples", "the batch from here on, as the run has decided (`by=noise_scale`)"),
        ("batch/noise_scale", "samples", "the noise scale that decided; absent after a rollback of the guard"),
        ("batch/ci_low", "samples", "lower end of its 95 % interval, which the batch is held against"),
        ("batch/ci_high", "samples", "upper end of its 95 % interval"),
        ("batch/num_measurements", "measurements", "in that estimate"),
        ("batch/num_steps", "steps", "of the whole run, as decided so far"),
    ),
    _family(
        "batch.on_out_of_memory",
        "communication no longer overlaps the backward pass",
        ("batch/max_micro", "samples", "bound of micro-batches since a rank ran out of memory"),
    ),
    _family(
        "data.on_bad_sample",
        "two small collectives per logged step",
        ("data/skipped", "samples", "samples left out since the last row"),
    ),
)
"""In the order of the table; layers.jsonl, ledger.jsonl and skipped.jsonl have columns of their own."""


def metric_key(key: str) -> MetricKey | None:
    """Unit and meaning of a key of a row; None: no observer of this package writes it.

    >>> metric_key("gap/loss").unit, metric_key("eval/ema_val_accuracy").unit
    ('loss per sample or token', 'share')
    """
    every = [one for family in METRIC_FAMILIES for one in family.keys]
    named = next((one for one in every if one.name == key), None)  # before a name that stands for many
    return named or next((one for one in every if one.matches(key)), None)


def stderr_key(key: str) -> str | None:
    """The key of the standard error of a metric; None: it has none.

    >>> stderr_key("gap/loss"), stderr_key("train/loss")
    ('gap/loss_stderr', None)
    """
    return f"{key}_stderr" if metric_key(f"{key}_stderr") else None


def markdown_table(families: Iterable[MetricFamily] = METRIC_FAMILIES) -> str:
    """All keys as a table in Markdown, a row each."""
    lines = ["| key | unit | meaning | asked for by | cost |", "|---|---|---|---|---|"]
    for family in families:
        asked_by = f"`{family.asked_by}`" if family.asked_by else "always"
        for one in family.keys:
            meaning = one.meaning.replace("|", r"\|")
            lines.append(f"| `{one.name}` | {one.unit} | {meaning} | {asked_by} | {family.cost} |")
    return "\n".join(lines)
