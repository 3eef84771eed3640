"""Photograph a report page for docs/: desktop and phone, light and dark, by a headless Chromium.

python tools/docs_shots.py runs/demo/report.html docs
"""

from __future__ import annotations

import argparse
import base64
import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from browser import Page, browser  # noqa: E402

SIZES = {"desktop": (1280, 900, "samples"), "phone": (390, 844, "verdict")}  # width, height, the section to show
SCROLL = "document.getElementById('%s').scrollIntoView(); new Promise(done => setTimeout(done, 200))"
COLOURS = 128  # of a picture, which keeps it small
MOST = 150_000  # bytes


def main() -> None:
    """Write report-<size>-<scheme>.png."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as profile, browser(Path(profile)) as page:
        for size in SIZES:
            for scheme in ("light", "dark"):
                path = given.out / f"report-{size}-{scheme}.png"
                path.write_bytes(photograph(page, given.page, size, scheme))
                print(path, path.stat().st_size)


def photograph(page: Page, path: Path, size: str, scheme: str) -> bytes:
    """Return what a section of a page looks like, as PNG.

    Raises:
        ValueError: the picture is too large to be kept in the repository.
    """
    width, height, section = SIZES[size]
    page.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
    page.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    page.open(path)
    for _ in range(3):  # what comes into view takes its room
        page.run(SCROLL % section)
    shot = Image.open(io.BytesIO(base64.b64decode(page.ask("Page.captureScreenshot", format="png")["data"])))
    file = io.BytesIO()
    shot.convert("RGB").quantize(COLOURS).save(file, "PNG", optimize=True)
    if file.tell() > MOST:
        raise ValueError(f"{path}: its picture takes {file.tell()} bytes, {MOST} are allowed; lower SIZES or COLOURS")
    return file.getvalue()


if __name__ == "__main__":
    main()
