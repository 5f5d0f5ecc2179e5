"""The chapter's page in a headless Chromium: its arithmetic is that of the closed forms, and its widgets answer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from largebatch.__main__ import main
from largebatch.batch.scaling import scale_lr
from largebatch.diagnostics.closed_forms import NoisyQuadratic
from largebatch.experiments.textbook.learning_rate import expected_kind
from largebatch.experiments.textbook.lesson.tasks import BATCH_SIZES, epochs_task
from tests.browser.visiting import Visit, wait_until

TASK = NoisyQuadratic([0.3, 2.0, 7.0], [1.5, 0.2, 4.0])
START = [3.0, -2.0, 0.5]


@pytest.fixture(scope="module")
def visit(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visit]:
    file = tmp_path_factory.mktemp("chapter") / "page.html"
    assert main(["textbook", "page", "--out", str(file)]) == 0
    found = Visit(browser, file, viewport={"width": 1440, "height": 900}, color_scheme="light")
    yield found
    found.page.close()


def of(visit: Visit, expression: str, **names: Any) -> Any:
    """A value of the page's arithmetic; `names` are its variables."""
    arguments = {"h": TASK.curvature.tolist(), "c": TASK.noise_variance.tolist(), "start": START, **names}
    return visit.page.evaluate(f"({{{', '.join(arguments)}}}) => {expression}", arguments)


def test_the_arithmetic_is_that_of_the_closed_forms(visit: Visit):
    task = "textbook.quadratic(h, c)"
    assert of(visit, f"{task}.loss(start)") == pytest.approx(TASK.loss(START), rel=1e-12)
    assert of(visit, f"{task}.gradient(start)") == pytest.approx(TASK.gradient(START).tolist(), rel=1e-12)
    for momentum in (0.0, 0.6):
        exact = TASK.mean_trajectory(START, lr=0.2, num_steps=25, momentum=momentum)
        path = of(visit, f"{task}.path(start, {{lr: 0.2, numSteps: 25, momentum: m}})", m=momentum)
        np.testing.assert_allclose(path, exact, rtol=1e-9, atol=1e-12)
        floor = TASK.stationary_variance(lr=0.2, global_batch_size=8, momentum=momentum)
        found = of(visit, f"{task}.stationaryVariance({{lr: 0.2, batch: 8, momentum: m}})", m=momentum)
        np.testing.assert_allclose(found, floor, rtol=1e-9)
        for lr in (0.01, 0.1, 0.2, 2 / 7, 0.3, 3.2 / 7, 0.5):
            kind = of(visit, f"{task}.kind(lr, m)", lr=lr, m=momentum)
            assert kind == expected_kind(TASK, lr, momentum), (lr, momentum)
            steps = [[[1 - lr * h, -lr * momentum], [h, momentum]] for h in TASK.curvature]
            radius = np.abs(np.linalg.eigvals(steps)).max()
            assert of(visit, f"{task}.errorFactor(lr, m)", lr=lr, m=momentum) == pytest.approx(radius, rel=1e-7)
    epochs = TASK.epoch_second_moments(START, lr=0.1, num_epochs=6, global_batch_size=10, num_samples=400)
    found = of(visit, f"{task}.epochSecondMoments(start, {{lr: 0.1, numEpochs: 6, batch: 10, numSamples: 400}})")
    np.testing.assert_allclose(found, epochs, rtol=1e-9)


def test_the_noise_of_a_batch_is_the_same_draws_over_the_root_of_its_size(visit: Visit):
    path = "textbook.quadratic(h, c).path(start, {lr: 0.1, numSteps: 60, batch, noise: textbook.noiseOf(3)})"
    one, four, many = (np.asarray(of(visit, path, batch=size)) for size in (1, 4, 64))
    mean = TASK.mean_trajectory(START, lr=0.1, num_steps=60)
    np.testing.assert_allclose(four - mean, (one - mean) / 2, atol=1e-12)
    np.testing.assert_allclose(many - mean, (one - mean) / 8, atol=1e-12)
    draws = np.asarray(of(visit, "Array.from({length: 8000}, (_, i) => textbook.noiseOf(5)(i >> 1, i & 1))"))
    # Standard errors of mean and variance of 8,000 normal draws: 0.011 and 0.016; of a correlation of pairs 0.016.
    assert abs(draws.mean()) < 0.05
    assert abs(draws.var() - 1) < 0.07
    assert abs(np.corrcoef(draws[::2], draws[1::2])[0, 1]) < 0.07


def test_steps_samples_and_time_follow_the_hyperbola_and_the_rates_their_rule(visit: Visit):
    model = "textbook.tradeOff({fewestSteps: 100, noiseScale: 64, parallel: 16})"
    # S = S_min (1 + B_crit/B), as fit_critical_batch's doctest has it; the least time lies at sqrt(64 * 16).
    assert of(visit, f"[8, 64].map({model}.steps)") == [900, 200]
    assert of(visit, f"{model}.fastest") == 32
    times = of(visit, f"Array.from({{length: 256}}, (_, i) => {model}.time(i + 1))")
    assert int(np.argmin(times)) + 1 == 32
    assert min(times) == pytest.approx(of(visit, f"{model}.leastTime"), rel=1e-12)
    for rule in ("linear", "sqrt"):
        exact = scale_lr(0.1, base_batch_size=32, global_batch_size=768, rule=rule).value
        assert of(visit, "textbook.scaleLr(0.1, {batch: 768, base: 32, rule})", rule=rule) == pytest.approx(exact)


def test_the_convergence_table_shows_the_losses_of_the_closed_form(visit: Visit):
    task = epochs_task()
    model = NoisyQuadratic(task["curvature"], task["noise_variance"])
    for row, size in (("batch", 1000), ("mini", 25), ("stochastic", 1)):
        moments = model.epoch_second_moments(
            task["start"], lr=task["rates"][row], num_epochs=50, global_batch_size=size, num_samples=1000
        )
        cells = visit.page.locator(f"[data-row={row}] td").all_text_contents()
        assert float(cells[3]) == pytest.approx(0.5 * model.curvature @ moments[-1], rel=0.05)  # two digits
        assert int(cells[1].replace(",", "")) == 50 * 1000 // size


def part(visit: Visit, widget: str, name: str) -> Any:
    return visit.page.locator(f"[data-widget={widget}] [data-part={name}]")


def set_slider(visit: Visit, widget: str, name: str, value: float) -> None:
    part(visit, widget, name).evaluate(
        "(one, value) => { one.value = value; one.dispatchEvent(new Event('input', {bubbles: true})); }", value
    )


def test_play_moves_the_path_and_step_moves_it_by_one(visit: Visit):
    part(visit, "descent", "place").focus()
    visit.page.keyboard.press("Home")
    assert part(visit, "descent", "iteration").text_content() == "0"
    assert float(part(visit, "descent", "distance").text_content()) == pytest.approx(math.hypot(8.5, 6), abs=0.05)
    part(visit, "descent", "step").click()
    assert part(visit, "descent", "iteration").text_content() == "1"
    part(visit, "descent", "play").click()
    iteration = "document.querySelector('[data-widget=descent] [data-part=iteration]')"
    wait_until(visit.page, f"Number({iteration}.textContent) > 3")
    part(visit, "descent", "play").click()
    assert part(visit, "descent", "play").text_content() == "Play"
    visit.page.locator("[data-widget=descent] button[value=stochastic]").click()
    assert "Batch 1 stays at a loss of" in str(part(visit, "descent", "answer").text_content())
    assert visit.page.locator("[data-widget=descent] .line").count() == 3


def test_the_label_changes_at_the_limit_of_stability(visit: Visit):
    told = {}
    for momentum, rates in ((0, (0.25, 0.26, 0.5, 0.505)), (0.5, (0.75, 0.755))):
        set_slider(visit, "rates", "momentum", momentum)
        for lr in rates:
            set_slider(visit, "rates", "lr", lr)
            told[momentum, lr] = part(visit, "rates", "state").text_content()
    assert list(told.values()) == ["converges", "oscillates", "oscillates", "diverges", "oscillates", "diverges"]


def test_the_explorer_recommends_the_smallest_batch_near_the_least_time(visit: Visit):
    set_slider(visit, "sizes", "noise", 10)
    set_slider(visit, "sizes", "parallel", 4)
    least = (1 + math.sqrt(1024 / 16)) ** 2
    smallest = min(size for size in BATCH_SIZES if (1 + 1024 / size) * (1 + size / 16) <= 1.25 * least)
    answer = part(visit, "sizes", "answer")
    set_slider(visit, "sizes", "batch", 0)
    assert f"Take {smallest}:" in str(answer.text_content())
    set_slider(visit, "sizes", "batch", int(part(visit, "sizes", "batch").get_attribute("max")))
    assert str(answer.text_content()).startswith("Too large: 80\u00a0% of the samples")


def test_every_batch_at_a_slider_has_its_unit(visit: Visit):
    texts = visit.page.locator("[data-part=batch-text], [data-part=parallel-text]").all_text_contents()
    assert len(texts) == 5
    assert all(text.endswith((" samples", " sample")) for text in texts), texts


def test_a_click_on_an_answer_tells_whether_it_is_right_and_why(visit: Visit):
    check = visit.page.locator(".check").nth(3)
    assert not check.locator(".reason").is_visible()
    check.get_by_role("button", name="yes, others are slow").click()
    assert check.locator(".result").text_content() == "Not so."
    check.get_by_role("button", name="no, that has to be timed").click()
    assert check.locator(".result").text_content() == "Right."
    assert check.get_by_text("largebatch textbook powers_of_two").is_visible()


def test_a_phone_scrolls_one_way_paper_shows_all_and_nothing_was_said_or_asked(visit: Visit, tmp_path: Path):
    visit.page.set_viewport_size({"width": 390, "height": 844})
    wait_until(visit.page, "document.documentElement.scrollWidth === 390")
    visit.page.emulate_media(media="print")
    assert visit.page.locator(".reason:visible").count() == visit.page.locator(".check").count() >= 8
    assert visit.page.locator("main details:not([open])").count() == 0
    assert visit.page.locator(".drawing:visible").count() == 5
    visit.page.emulate_media(media="screen", reduced_motion="reduce")
    visit.page.reload()
    assert not part(visit, "descent", "play").is_visible()
    assert part(visit, "descent", "step").is_visible()
    assert visit.said == []
    assert {url for url in visit.asked if not url.startswith(("data:", "blob:"))} == {visit.page.url}
