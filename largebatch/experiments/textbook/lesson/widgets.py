"""The HTML of the widgets: a question above, a picture, controls, and a sentence that follows the numbers."""

from __future__ import annotations

from collections.abc import Sequence

from largebatch.experiments.textbook.lesson.tasks import BATCH_SIZES, RATES, STEPS
from largebatch.records.report.html_parts import escaped, prose

_VARIANTS = (("batch", "Batch"), ("mini", "Mini-batch"), ("stochastic", "Stochastic"))


def descent() -> str:
    """Three paths over a valley."""
    controls = _buttons("variant", "Variant", _VARIANTS, chosen="batch", keyed=True)
    controls += _range("lr", "Learning rate", low="0.01", high="0.22", step="0.005", value="0.18")
    controls += _range("batch", "Mini-batch size", low="1", high="9", step="1", value="4")
    controls += _player("Iteration", STEPS)
    numbers = (("iteration", "iteration"), ("loss", "loss"), ("distance", "distance to the minimum"),
               ("gradient", "gradient norm"))  # fmt: skip
    return _widget(
        "descent",
        "Why does descent zig-zag, and what does a small batch add?",
        _picture("picture", "Contours of the loss, and the path of each variant over them"),
        controls + _numbers(numbers),
        "A quadratic valley, ten times as steep one way as the other. A gradient of B samples has the noise of one, "
        "divided by the root of B; every replay and every batch size takes the same draws. The batch of the whole set "
        "has none.",
    )


def epochs(count: int, divisors: Sequence[int]) -> str:
    """Losses of the three variants over epochs."""
    controls = _buttons("against", "Against", (("epochs", "epochs"), ("updates", "updates"), ("time", "time")),
                        chosen="epochs")  # fmt: skip
    controls += _player("Epoch", count)
    middle = str(min(range(len(divisors)), key=lambda place: abs(divisors[place] - 32)))
    controls += _range("batch", "Mini-batch size", low="0", high=str(len(divisors) - 1), step="1", value=middle)
    controls += _range("parallel", "Batch that doubles a step's time", low="0", high="10", step="1", value="6")
    heads = ("variant", "batch", "updates", "time of an epoch", "loss above the minimum")
    rows = "".join(
        f'<tr data-row="{key}"><th scope="row"><i class="key {key}"></i>{label}</th>{"<td></td>" * 4}</tr>'
        for key, label in _VARIANTS
    )
    head = "".join(f'<th scope="col">{text}</th>' for text in heads)
    table = f'<div class="table" tabindex="0" role="region" aria-label="The variants at this epoch"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'  # noqa: E501
    return _widget(
        "epochs",
        "Which variant is closest to the minimum after the same epochs?",
        _picture("picture", "Loss above the minimum of the three variants"),
        controls,
        "The data set of `largebatch textbook gd_variants`: 1,000 samples, 10 features, rates 0.1, 0.05 and 0.01. "
        "Expected losses of the noisy quadratic around the minimum, shuffled epochs. A step's time grows in "
        "proportion to 1 + batch / the batch that doubles it.",
        below=table,
    )


def rates() -> str:
    """A learning rate from 0.01 to 1.5."""
    controls = _range("lr", "Learning rate", low="0.01", high="1.5", step="0.005", value="0.3")
    controls += _range("momentum", "Momentum", low="0", high="0.95", step="0.05", value="0")
    numbers = (("limit", "largest stable rate"), ("share", "rate over this limit"),
               ("reached", "steps to 1 % of the loss"))  # fmt: skip
    pictures = _picture("path", "Path of the weights over the loss")
    pictures += _picture("curve", "Loss over steps, relative to the first one")
    state = '<p class="state" data-part="state" role="status"></p>'
    return _widget(
        "rates",
        "How large may the learning rate be?",
        f'<div class="pair">{pictures}</div>',
        controls + state + _numbers(numbers),
        f"{STEPS} steps on a quadratic with curvatures {_listed(RATES['curvature'])}, without noise. "
        "Converges: straight in. Oscillates: a direction overshoots. Diverges: the rate is above "
        "2 (1 + momentum) / the largest curvature.",
    )


def sizes() -> str:
    """Batch sizes from 1 to 4096."""
    last, start = str(len(BATCH_SIZES) - 1), str(BATCH_SIZES.index(64))
    controls = _range("batch", "Batch size", low="0", high=last, step="1", value=start)
    controls += _range("noise", "Noise scale", low="0", high="14", step="1", value="9")
    controls += _range("parallel", "Batch that doubles a step's time", low="0", high="12", step="1", value="6")
    controls += _range("lr", "Tuned rate", low="0.01", high="0.5", step="0.01", value="0.1")
    controls += _buttons("rule", "Rate by the rule", (("linear", "linear"), ("sqrt", "square root")), chosen="linear")
    numbers = (
        ("steps", "steps to the target"), ("samples", "samples"), ("step-time", "time of a step"),
        ("time", "total time"), ("throughput", "throughput"), ("noise-sd", "noise of the gradient"),
        ("scaled", "learning rate"),
    )  # fmt: skip
    legend = "".join(f'<span><i class="key {name}"></i>{name}</span>' for name in ("steps", "samples", "time"))
    return _widget(
        "sizes",
        "Which batch size reaches the target first?",
        _picture("picture", "Steps, samples and time to the target over the batch size, relative to the least of each")
        + f'<p class="keys">{legend}<span><i class="key good"></i>within 25 % of the least time</span></p>',
        controls + _numbers(numbers),
        "Steps = 1,000 (1 + noise scale / batch): McCandlish et al. 2018. Time of a step = 1 + batch / the batch that "
        "doubles it. The least time is at the root of noise scale times that batch. Your noise scale: "
        "`observers.noise_scale.every=10`; your steps: `largebatch study`.",
    )


def _widget(name: str, question: str, picture: str, controls: str, model: str, *, below: str = "") -> str:
    return (
        f'<div class="widget" data-widget="{name}"><p class="question">{escaped(question)}</p>'
        f'<p class="answer" data-part="answer" role="status" aria-live="polite"></p>'
        f'<div class="stage"><div class="pictures">{picture}</div><div class="controls">{controls}</div></div>'
        f'{below}<p class="soft">{prose(model)}</p></div>'
    )


def _picture(part: str, label: str) -> str:
    return f'<svg class="drawing" data-part="{part}" role="img" aria-label="{escaped(label)}"></svg>'


def _range(part: str, label: str, *, low: str, high: str, step: str, value: str) -> str:
    """A slider whose label and value paper shows, too."""
    return (
        f'<div class="control"><label><span>{escaped(label)}</span> <output data-part="{part}-text"></output>'
        f'<input type="range" data-part="{part}" min="{low}" max="{high}" step="{step}" value="{value}" '
        f'autocomplete="off"></label></div>'
    )


def _player(label: str, last: int) -> str:
    return (
        _range("place", label, low="0", high=str(last), step="1", value=str(last))
        + '<div class="player"><button type="button" data-part="play">Play</button>'
        '<button type="button" data-part="step">Step</button></div>'
    )


def _buttons(group: str, label: str, options: Sequence[tuple[str, str]], *, chosen: str, keyed: bool = False) -> str:
    key = '<i class="key {}"></i>' if keyed else ""
    buttons = "".join(
        f'<button type="button" value="{value}" aria-pressed="{"true" if value == chosen else "false"}">'
        f"{key.format(value)}{escaped(text)}</button>"
        for value, text in options
    )
    return f'<div class="group" role="group" aria-label="{escaped(label)}" data-group="{group}">{buttons}</div>'


def _numbers(rows: Sequence[tuple[str, str]]) -> str:
    cells = "".join(f'<div><dt>{escaped(label)}</dt><dd data-part="{part}"></dd></div>' for part, label in rows)
    return f"<dl>{cells}</dl>"


def _listed(values: Sequence[float]) -> str:
    return " and ".join(f"{value:g}" for value in values)
