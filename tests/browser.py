"""Pages as people open them: in a real headless Chromium, at three widths, light and dark, by keyboard."""

import os
import shutil
from pathlib import Path

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTHS = (1280, 760, 380)  # px: a screen, a tablet, a phone
MAX_BYTES = 3_000_000


def launched():
    """Yields the browser; the test skips where there is none. ``.ci/run`` sees to one where it can."""
    path = os.environ.get("RETAILRAY_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if not path:
        pytest.skip("needs Chromium: apt-get install chromium, or set RETAILRAY_BROWSER to a Chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def problems_of(browser, path):
    """What is wrong with a page: messages in the console, requests, widths, and what axe finds for accessibility."""
    from axe_playwright_python.sync_playwright import Axe

    problems = [] if os.path.getsize(path) < MAX_BYTES else [f"{os.path.getsize(path)} bytes"]
    for scheme in ("light", "dark"):
        page = browser.new_page(color_scheme=scheme, viewport={"width": WIDTHS[0], "height": 900})
        page.on("console", lambda message: problems.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: problems.append(f"error: {error}"))
        page.on("request", lambda request: problems.extend(_foreign(request.url)))
        page.goto(Path(path).as_uri())
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            if (wide := page.evaluate("document.documentElement.scrollWidth")) > width:
                problems.append(f"{wide} px wide on a screen of {width}")
        for one in Axe().run(page).response["violations"]:
            problems.append(f"{scheme}: {one['id']}: {one['nodes'][0]['html'][:200]}")
        page.close()
    return problems


def _foreign(url):
    return [] if url.startswith(("file:", "data:", "blob:")) else [f"it asks for {url}"]
