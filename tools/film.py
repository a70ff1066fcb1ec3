"""Draw the README's moving picture, data/examples/film.gif: python tools/film.py

A real JupyterLab in a headless Chromium (tests/test_browser.py drives it): a click on a token, the
failure point, the correction composed there, and what each method would say of it.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

import nbformat
from PIL import Image
from playwright.sync_api import Locator, Page, sync_playwright

from workbench.paths import DATA, ROOT

sys.path.insert(0, str(ROOT / "tests"))
from test_browser import CHROMIUM, run_in_lab

WIDTH, COLORS = 900, 96
CODE = """\
from ipywidgets import VBox
from workbench import GRPO, SDPO, SFT, Composer, TokenView, inspect_group, load_policy, load_task
from workbench import ORGANISM, sample_groups
from workbench.corrections.editor import CorrectionEditor

policy, task = load_policy(ORGANISM / "3m"), load_task("arithmetic")
groups = sample_groups(policy, task, task.problems("validation", 16, 0), 4, (0, "film"))
group = next(g for g in groups if g.has_contrast)
methods = {"GRPO": GRPO(k=4), "SDPO": SDPO(k=4, a=1.0), "SFT": SFT()}
view = TokenView(inspect_group(policy, group, task, methods), policy, layer="delta")
panel = Composer(CorrectionEditor(policy, task, group, methods), view=view)
panel.begin(token=0)
VBox([view.widget, panel.box])"""


def frames(page: Page) -> list[tuple[Image.Image, int]]:
    """(picture, milliseconds that it stays)."""
    view, draft = page.locator(".wb-view").last, page.locator(".wb-draft").last
    panel = page.locator(".widget-vbox:has(> .widget-textarea)").last
    shots: list[tuple[Image.Image, int]] = []

    def shot(milliseconds: int, what: Locator = view) -> None:
        page.wait_for_timeout(400)
        picture = Image.open(io.BytesIO(what.screenshot())).convert("RGB")
        shots.append((picture, milliseconds))

    wrong = view.locator(".wb-card:has(.wb-bad)").first
    step = wrong.locator(".wb-bad").evaluate(
        "(e) => [...e.parentNode.querySelectorAll('.wb-step')].indexOf(e)"
    )
    first = wrong.locator(".wb-toks").nth(step).locator(".wb-t")
    shot(1800)
    for number in (0, 2, 3):
        first.nth(min(number, first.count() - 1)).hover()
        shot(900)
    before = draft.text_content()
    first.nth(min(3, first.count() - 1)).click()
    page.wait_for_function(
        "(text) => [...document.querySelectorAll('.wb-draft')].at(-1)?.textContent !== text",
        arg=before,
        timeout=60_000,
    )
    shot(1600)
    shot(2600, panel)
    page.get_by_role("button", name="Credit by method").click()
    page.locator(".wb-draft", has_text="GRPO credit").last.wait_for(timeout=60_000)
    page.locator(".wb-draft").last.get_by_label("SDPO credit", exact=True).check()
    shot(3500, panel)
    return shots


def save(shots: list[tuple[Image.Image, int]], path: Path) -> None:
    height = max(image.height * WIDTH // image.width for image, _ in shots)
    pages = []
    for image, _ in shots:
        scaled = image.resize((WIDTH, image.height * WIDTH // image.width), Image.LANCZOS)
        page = Image.new("RGB", (WIDTH, height), "white")
        page.paste(scaled)
        pages.append(page.quantize(COLORS))
    durations = [milliseconds for _, milliseconds in shots]
    pages[0].save(
        path, save_all=True, append_images=pages[1:], duration=durations, loop=0, optimize=True
    )


def main() -> None:
    path = DATA / "examples" / "film.gif"
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        notebook = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(CODE)], metadata={"kernelspec": kernel}
        )
        nbformat.write(notebook, Path(folder) / "film.ipynb")
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        with run_in_lab(browser, Path(folder), Path(folder) / "film.ipynb", 300) as page:
            page.set_viewport_size({"width": 1500, "height": 2200})
            save(frames(page), path)
        browser.close()
    print(path.relative_to(ROOT), f"{path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
