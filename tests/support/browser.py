"""The machine's Chromium, driven by playwright, for tests of pages; axe-core finds what is not accessible."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NARROW, WIDE = {"width": 390, "height": 844}, {"width": 1280, "height": 900}  # CSS pixels: a telephone, a desktop
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
GRAVE = ("serious", "critical")  # axe's impacts that fail a test


def chromium_path() -> str | None:
    """Return the path of the machine's Chromium, or None. CHROMIUM names another one."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)


@contextmanager
def open_chromium() -> Iterator[Any]:
    """Start headless Chromium and yield playwright's browser. Skips the test if none is installed."""
    executable = chromium_path()
    if executable is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is on PATH")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium's sandbox refuses to run as root
    with playwright.sync_playwright() as session:
        browser = session.chromium.launch(executable_path=executable, args=[*arguments, "--disable-gpu"])
        try:
            yield browser
        finally:
            browser.close()


class OpenPage:
    """A page in a context of its own, with all that the browser complained about.

    `complaints`: errors and warnings of the console, uncaught exceptions, failed requests, responses from 400 on.
    `requests`: addresses that the page asked for, in order.
    """

    def __init__(self, browser: Any, *, dark: bool = False, viewport: Any = None, **context: Any) -> None:
        options = {"viewport": viewport or WIDE, "color_scheme": "dark" if dark else "light"} | context
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.complaints.append(f"exception: {error}"))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("requestfailed", lambda request: self.complaints.append(f"failed: {request.url}"))
        self.page.on("response", self._on_response)

    def __enter__(self) -> "OpenPage":
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def _on_console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"console {message.type}: {message.text}")

    def _on_response(self, response: Any) -> None:
        if response.status >= 400:
            self.complaints.append(f"status {response.status}: {response.url}")

    def open(self, address: str | Path, **options: Any) -> Any:
        """Load an address or a file and return playwright's page."""
        self.page.goto(address.resolve().as_uri() if isinstance(address, Path) else address, **options)
        return self.page

    @property
    def overflow(self) -> int:
        """CSS pixels by which the page is wider than the window; 0 if it does not scroll sideways."""
        width: int = self.page.evaluate(
            "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        return width

    def violations(self, impacts: tuple[str, ...] = GRAVE) -> list[str]:
        """Return what axe-core finds of these impacts: "serious color-contrast: .note (2 places)"."""
        axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
        found = axe.Axe().run(self.page).response["violations"]
        return [
            f"{one['impact']} {one['id']}: {one['nodes'][0]['target']} ({len(one['nodes'])} places)"
            for one in found
            if one["impact"] in impacts
        ]
