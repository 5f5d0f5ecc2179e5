"""The verbs of the command line. A verb is the file of its name, see README.md."""

from __future__ import annotations

VERBS = {
    "train": "train with an exact global batch on any number of processes",
    "launch": "start processes here or on a cluster: `launch torchrun 8 ...`, `launch slurm --nodes 4 ...`",
    "plan": "print what a run would do: batch plan, learning rates, steps, memory; starts nothing",
    "advise": "measure within a budget, and answer: how large should my batch be, and what will it cost?",
    "verify": "prove on your model and data that ranks and accumulation change nothing; else name the cause",
    "measure": "measure trained weights: `measure sharpness|variance|gap|communication|critical-batch|all`",
    "study": "measure steps to a target against batch size; `study analyze FILE` fits a CSV; `study atlas`",
    "find-lr": "suggest a learning rate by a range test over seeds, with the reason; map rate x batch size",
    "find-micro": "find the largest micro-batch that fits on all ranks, and the smallest that is as fast",
    "compare": "estimate the cost of a larger batch from runs at different batch sizes: `compare RUN...`",
    "attribute": "split the loss of a larger batch into fewer steps, less noise, unscaled hyper-parameters",
    "report": "write one interactive page of all runs and results below a folder: `report FOLDER...`",
    "diff": "find the first step in which two runs differ: `diff A B`",
    "checkpoint": "check every byte: `checkpoint verify PATH`; export plain weights: `checkpoint export PATH`",
    "doctor": "check versions, devices, memory, disk, ports and launcher; report problems with their remedies",
    "textbook": "run the textbook's experiments on batch size, or write its chapter: `textbook NAME|all|page`",
    "help": "tell about one key, group, choice or word: `help batch.total`, `help optimizer`, `help warmup`",
    "completion": "print the script that completes by TAB: `completion bash|zsh|fish`",
    "bench": "measure speed on this machine, or count mistakes on planted truths: `bench loop|optim|rows|verify|...`",
}
