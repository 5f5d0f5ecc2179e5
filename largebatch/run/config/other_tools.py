"""What other tools call our keys, and what differs: timm, Hugging Face, Lightning, composer, torchtitan, DeepSpeed.

Nothing of this is accepted: a rate or a batch that means another thing here would train another experiment. In a
sentence `{value}` is the given value, `{number}` the same if it is a number, and N otherwise.
"""

from __future__ import annotations

import re

_RATE = (
    "scaling.base_lr is the rate at a batch of scaling.base_batch_size samples, and scaling.rule scales it to "
    "batch.total. To give the peak rate itself, whatever the batch, write scaling=none scaling.base_lr={number}."
)
_BATCH = (
    "Write batch.total={number} if that is the batch of one optimizer step, over all ranks and accumulation steps. A "
    "batch per device is another number: batch.total is its product with both, and batch.max_micro limits the samples "
    "of one forward pass."
)
_MICRO = (
    "batch.total is the batch of all ranks; batch.max_micro={number} limits the samples of one forward pass, and "
    "accumulation follows from both."
)
_ACCUMULATION = (
    "Accumulation follows: batch.total samples per step, over all ranks, at most batch.max_micro in one forward pass. "
    "More accumulation at the same batch is a smaller batch.max_micro."
)
_RANKS = "The launcher sets the number of processes: torchrun --nproc-per-node {number} -m largebatch ..."
_NODES = "The launcher sets the number of nodes: torchrun --nnodes {number} --rdzv-backend c10d ... -m largebatch ..."
_DEVICE = "The device follows from the machine; CUDA_VISIBLE_DEVICES chooses GPUs, and hides them if it is empty."
_STRATEGY = (
    "Ranks are data-parallel, with DDP or our own reductions; nothing is sharded. Start them with torchrun, and read "
    "the plan: `largebatch plan`."
)
_AMP = "Write precision=bf16 or precision=fp16 (autocast over fp32 weights), or precision=fp32."
_STEPS = "Write length={number}steps."
_EPOCHS = "Write length={number}ep."
_WARMUP = "A warmup has a unit: schedule.warmup={number}ep, {number}steps or {number}samples."
_CLIP = "Write clip_norm={number}, the largest L2 norm of the gradient of the global batch."
_EVALUATION = "Write observers.evaluation.every={number}ep or {number}steps."
_CHECKPOINT = (
    "Write observers.checkpoint.every={number}ep or {number}steps; observers.checkpoint.every_minutes is another way."
)
_ROWS = "Write observers.metrics.every={number}, in steps."
_NO_BETAS = "The betas are one list, optimizer.betas=[0.9,0.999], of adamw, lamb and muon."

# Words of other tools, normalised: lower case, - as _ -> what to write here.
_SENTENCES = {
    "lr learning_rate max_lr peak_lr initial_lr init_lr base_learning_rate learnrate": _RATE,
    "blr lr_base": "Write scaling.base_lr={number}, the rate at scaling.base_batch_size samples.",
    "lr_base_size": "Write scaling.base_batch_size={number}, the batch that scaling.base_lr is meant for.",
    "lr_base_scale": "Write scaling=linear, scaling=sqrt or scaling=none.",
    "min_lr lr_min eta_min min_lr_ratio alpha_f": (
        "schedule.end_factor is the last rate as a share of the peak, such as schedule.end_factor=0.01."
    ),
    "epochs epoch num_epochs max_epochs n_epochs nepochs total_epochs num_train_epochs train_epochs": _EPOCHS,
    "steps max_steps num_steps total_steps train_steps training_steps max_iters num_iters iters iterations "
    "num_training_steps train_num_steps max_train_steps": _STEPS,
    "max_duration duration": "Write length={value}: 30ep, 500steps or 100000samples.",
    "batch_size bs batchsize global_batch_size total_batch_size train_batch_size effective_batch_size "
    "global_train_batch_size": _BATCH,
    "micro_batch_size microbatch_size per_device_train_batch_size per_device_batch_size per_gpu_batch_size "
    "device_batch_size local_batch_size device_train_microbatch_size train_micro_batch_size_per_gpu "
    "per_gpu_train_batch_size device_train_batch_size": _MICRO,
    "eval_batch_size val_batch_size per_device_eval_batch_size validation_batch_size test_batch_size "
    "device_eval_batch_size": "Write observers.evaluation.micro={number}, the samples of one forward pass.",
    "gradient_accumulation_steps accumulate_grad_batches grad_accum accum_iter accumulation accumulation_steps "
    "accum_steps grad_accum_steps gradient_accumulation acc_steps": _ACCUMULATION,
    "wd decay": "Write optimizer.weight_decay={number}; the decay of the rate is chosen with schedule=NAME.",
    "beta1 beta2 adam_beta1 adam_beta2 opt_betas": _NO_BETAS,
    "adam_epsilon epsilon opt_eps": "Write optimizer.eps={number}.",
    "warmup": _WARMUP,
    "warmup_epochs warmup_epoch": "Write schedule.warmup={number}ep.",
    "warmup_steps num_warmup_steps warmup_iters lr_warmup_steps": "Write schedule.warmup={number}steps.",
    "warmup_ratio warmup_proportion": "A warmup is a length, not a share of the run: schedule.warmup=5ep, 500steps.",
    "warmup_lr warmup_lr_init warmup_start_lr": "A warmup starts at schedule.warmup_from=zero or base_lr.",
    "scheduler lr_scheduler lr_scheduler_type sched lr_schedule": (
        "Write schedule=NAME: constant, cosine, linear, polynomial or step."
    ),
    "step_size milestones lr_steps decay_epochs": "Write schedule=step schedule.milestones=[30ep,60ep].",
    "decay_rate lr_gamma": "Write schedule=step schedule.gamma={number}.",
    "grad_clip clip grad_norm max_grad_norm max_norm clip_grad clip_grad_norm gradient_clip_val gradient_clipping "
    "gradient_clip": _CLIP,
    "bf16": "Write precision=bf16; without it precision=fp32. precision=auto decides by the GPU.",
    "fp16": "Write precision=fp16; without it precision=fp32. precision=auto decides by the GPU.",
    "fp64 double": "Write precision=fp64.",
    "amp dtype mixed_precision autocast amp_dtype use_amp": _AMP,
    "torch_compile torchcompile compile_model": "Write precision.compile=true or precision.compile=blocks.",
    "sync_bn sync_batchnorm syncbn": (
        "Write batch_norm=exact for statistics of the whole global batch; the default takes those of each micro-batch."
    ),
    "output_dir out_dir save_dir log_dir run_dir exp_dir logdir default_root_dir save_folder dump_folder output": (
        "Write run.dir={value} for the folder of this run, or run.root={value} for a folder of runs."
    ),
    "run_name exp_name experiment_name": "Write run.name={value}.",
    "resume_from resume_from_checkpoint ckpt ckpt_path checkpoint load_path resume_path": (
        "Write resume={value} for a run or a checkpoint of ours; run.dir=FOLDER resume=auto continues in its folder."
        " The verb measure has a key of its own for it."
    ),
    "gradient_checkpointing grad_checkpointing grad_checkpoint activation_checkpoint": (
        "Write precision.activation_checkpointing=true."
    ),
    "devices gpus num_gpus ngpus n_gpu ngpu num_devices nproc num_processes nproc_per_node gpus_per_node ranks "
    "world_size": _RANKS,
    "num_nodes nnodes n_nodes nodes": _NODES,
    "device accelerator use_cpu no_cuda cuda cpu": _DEVICE,
    "strategy ddp fsdp fsdp2 zero zero_stage distributed parallelism tensor_parallel_degree deepspeed": _STRATEGY,
    "find_unused_parameters": "A parameter without a gradient is refused before the first step, with its name.",
    "local_rank": "Ranks are known from the environment: start with torchrun, or with `deepspeed --no_local_rank`.",
    "arch net network backbone model_name model_name_or_path": "Write model=NAME.",
    "dataset dataset_name datamodule": "Write data=NAME.",
    "data_dir data_path data_root dataset_path train_dir": "Write data=NAME data.path={value}.",
    "max_train_samples limit_train_batches max_samples": "Write data.limit={number}, in samples of the training set.",
    "overfit_batches overfit": "Write debug=overfit.",
    "profile profiler": "Write debug=profile, or observers.profile.steps=10.",
    "fast_dev_run smoke_test": "Write debug=tiny, or length=2steps with your own settings.",
    "dryrun": "Use the verb plan: `largebatch plan ...` starts nothing.",
    "opt optim optimizer_name": "Write optimizer=NAME.",
    "workers num_data_workers dataloader_num_workers train_num_workers": "Write data.num_workers={number}, per rank.",
    "prefetch_factor": "Write data.prefetch={number}, in micro-batches.",
    "smoothing": "Write loss.label_smoothing={number}.",
    "dropout drop drop_rate dropout_rate drop_path drop_path_rate hidden_dropout_prob": (
        "It is an argument of the model: model.dropout={number} of model=gpt, or +model.NAME={number} with the name "
        "that your class has."
    ),
    "img_size input_size image_resolution": "Write data.image_size={number}, of a data set that has it.",
    "seq_len seq_length block_size sequence_length max_seq_len max_seq_length max_length n_ctx": (
        "Write data.context_length={number}, of a data set that has it."
    ),
    "random_seed manual_seed": "Write seed={number}.",
    "save_every save_steps save_interval save_freq checkpoint_interval ckpt_every checkpoint_every": _CHECKPOINT,
    "save_total_limit save_top_k checkpoint_hist keep_checkpoints": "Write observers.checkpoint.keep={number}.",
    "load_best_model_at_end metric_for_best_model eval_metric monitor": (
        "Write observers.checkpoint.best_by=eval/val_loss, or another metric of the evaluation."
    ),
    "eval_every eval_interval eval_steps eval_freq val_interval val_every val_check_interval "
    "check_val_every_n_epoch evaluation_strategy eval_strategy": _EVALUATION,
    "log_every log_interval logging_steps log_every_n_steps log_freq print_freq": _ROWS,
    "quiet silent disable_tqdm enable_progress_bar progress_bar": "Write observers.progress=false.",
    "wandb no_wandb use_wandb log_wandb report_to": (
        "Write logger=default, logger=wandb, logger=tensorboard or logger=none."
    ),
    "wandb_project": "Write logger.wandb.project={value}.",
    "wandb_entity": "Write logger.wandb.entity={value}.",
    "wandb_name wandb_run_name": "Write logger.wandb.name={value}.",
    "wandb_group": "Write logger.wandb.group={value}.",
    "wandb_tags": "Write logger.wandb.tags=[{value}].",
    "wandb_mode": "Write logger.wandb.mode={value}.",
}
_BY_WORD = {word: sentence for words, sentence in _SENTENCES.items() for word in words.split()}
# Sections in which these words mean the same as alone.
_PLAIN_SECTIONS = {
    "trainer", "training", "train", "args", "hparams", "params", "config", "cfg", "run", "optim", "optimizer", "data",
    "dataset", "dataloader", "loader", "datamodule", "scheduler", "lr_scheduler", "schedule", "batch", "scaling",
    "logger", "parallelism", "job", "training_args", "checkpoint", "metrics", "compile", "experiment", "global",
}  # fmt: skip

# Exact synonyms of choices. What is merely similar, as Adam and AdamW, is none.
_SAME = {
    "image_folder": "imagenet imagefolder",
    "cross_entropy": "ce xent crossentropy crossentropyloss",
    "next_token": "lm clm causal_lm language_modeling",
    "info_nce": "nt_xent ntxent simclr contrastive",
    "sqrt": "square_root root",
    "step": "multistep multi_step step_lr multisteplr",
    "cosine": "cosine_annealing cosineannealinglr cosine_with_warmup",
    "polynomial": "poly",
    "constant": "constant_with_warmup",
    "bf16": "bfloat16 bf16-mixed bf16_mixed amp_bf16",
    "fp16": "float16 half 16 16-mixed 16_mixed amp_fp16",
    "fp32": "float32 single 32 32-true 32_true no",
    "fp64": "float64 double 64 64-true 64_true",
    "tensorboard": "tb",
    "hugging_face": "hf transformers",
    "none": "false off disabled",
}
_CHOICES = {word: choice for choice, words in _SAME.items() for word in words.split()}
# `GROUP=WORD` -> what to write: another thing than any choice, but not far.
_NEAR_CHOICES = {
    "optimizer": {
        "adam": "torch's, whose decay is part of the gradient: optimizer=adamw optimizer._target_=torch.optim.Adam.",
        "larc": "LARC is optimizer=lars optimizer.clip=true.",
        "nesterov": "Write optimizer=sgd optimizer.nesterov=true.",
    },
    "loss": {
        "mse": "torch's mean: loss=module loss._target_=torch.nn.MSELoss. loss=squared_error is half of the squares.",
        "bce": "Write loss=module loss._target_=torch.nn.BCEWithLogitsLoss.",
        "l1": "Write loss=module loss._target_=torch.nn.L1Loss.",
    },
}


def sentence_for_key(given: str, value: str = "") -> str:
    """What to write for another tool's key; empty if it is none.

    >>> sentence_for_key("trainer.max_epochs", "10")
    'Write length=10ep.'
    >>> sentence_for_key("max_epochs", "10ep"), sentence_for_key("length")
    ('Write length=Nep.', '')
    """
    *sections, last = normalised(given).split(".")
    if last not in _BY_WORD or not _PLAIN_SECTIONS.issuperset(sections):
        return ""
    number = value if re.fullmatch(r"[-+]?[0-9_.]+(e[-+]?[0-9]+)?", value, re.IGNORECASE) else "N"
    return _BY_WORD[last].format(value=value or "VALUE", number=number)


def same_choice(given: str) -> str:
    """Our name of a choice that `given` is a synonym of; empty if it is none.

    >>> same_choice("BFloat16")
    'bf16'
    """
    return _CHOICES.get(given.casefold(), "")


def near_choice(group: str, given: str) -> str:
    """What to write for a choice that is not ours, but can be had; empty if nothing is known."""
    return _NEAR_CHOICES.get(group, {}).get(given.casefold().removesuffix("loss"), "")


def normalised(key: str) -> str:
    """A key as it is compared: without leading dashes, in lower case, with _ for - and blanks.

    >>> normalised("--Batch-Size")
    'batch_size'
    """
    return re.sub(r"[-\s]", "_", key.lstrip("-").casefold())
