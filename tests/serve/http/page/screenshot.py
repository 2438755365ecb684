"""Draw docs/images/page.png: the page of a server that draws with the shipped model.

ldmrt serve out/emoji64
python tests/serve/http/page/screenshot.py http://127.0.0.1:7860 docs/images/page.png
"""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

PROMPTS = ("a red apple", "a yellow banana", "an orange", "a green apple", "a strawberry")
WIDTH, HEIGHT = 1440, 1000


def main(url: str, out: str) -> None:
    """Draw a few images, and write what a window of 1440 pixels shows, with a palette of 256 colors."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        page.goto(url)
        page.wait_for_selector("#plot polyline", state="attached")
        page.get_by_label("Name").select_option("dpmpp_2m_karras")
        for number, prompt in enumerate(PROMPTS, start=1):
            page.get_by_label("Seed").fill(str(number))
            page.get_by_label("Prompt", exact=True).fill(prompt)
            page.keyboard.press("Enter")
            page.wait_for_selector(f"#gallery li:nth-child({number})")
            page.wait_for_selector("#draw[aria-disabled=false]")
        shot = Image.open(io.BytesIO(page.screenshot()))
        browser.close()
    shot.convert("RGB").quantize(256).save(Path(out), optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
