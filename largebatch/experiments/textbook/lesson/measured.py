"""What the experiments of the textbook have answered, where their records are at hand."""

from __future__ import annotations

from largebatch.records.report.evidence import Evidence
from largebatch.records.report.html_parts import prose

# A record keeps the title of its result, not the name of its experiment.
TITLES = {
    "gd_variants": "Batch, stochastic and mini-batch gradient descent",
    "convergence": "Rates of convergence",
    "learning_rate": "The learning rate of gradient descent",
    "gradient_variance": "The variance of a mini-batch gradient",
    "unbiasedness": "Is the mini-batch gradient unbiased?",
    "accumulation": "Gradient accumulation",
    "linear_scaling": "The linear scaling rule",
    "warmup": "Warmup",
    "lars": "SGD, LARS and LAMB over batch sizes",
    "noise_and_minima": "Noise and minima",
    "quadratic_methods": "Which choices matter at which batch sizes",
    "powers_of_two": "Powers of two",
}


class Answers:
    """First sentences of the experiments among the evidence; of several records of one, the first."""

    def __init__(self, evidence: Evidence) -> None:
        found = {record.result.title: record.result for record in reversed(evidence.of("textbook"))}
        answered = {name: found[title].sentences for name, title in TITLES.items() if title in found}
        self._sentences = {name: sentences[0] for name, sentences in answered.items() if sentences}

    def line(self, name: str) -> str:
        """HTML: the measured answer of an experiment, or the command that measures it."""
        command = f"`largebatch textbook {name}`"
        if name in self._sentences:
            return f'<p class="measured">{prose(f"Measured by {command}: {self._sentences[name]}")}</p>'
        return f'<p class="soft">{prose(f"Measure it: {command}")}</p>'

    def cell(self, name: str) -> str:
        """Plain text for a table."""
        return self._sentences.get(name, "not measured here")
