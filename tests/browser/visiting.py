"""A page in a browser, with everything that it said and asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def wait_until(page: Any, expression: str, arg: Any = None) -> None:
    """Ask until it is so. `wait_for_function` asks by `eval` inside the page, which its policy forbids."""
    for _ in range(600):
        if page.evaluate(expression, arg):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"still not so: {expression}")


class Visit:
    """A page with everything that it said and asked for."""

    def __init__(self, browser: Any, file: Path, **context: Any) -> None:
        self.page = browser.new_page(**context)
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(file.as_uri())

    def draw_all(self) -> None:
        """Make the window as high as the page, so that every figure that is not hidden comes into view."""
        size = self.page.viewport_size
        self.page.set_viewport_size(size | {"height": self.page.evaluate("document.body.scrollHeight")})
        shown = "[...document.querySelectorAll('figure[data-figure]')].filter((one) => one.offsetParent)"
        wait_until(self.page, f"{shown}.every((one) => one.querySelector('.xtitle'))")
