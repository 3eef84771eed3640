"""Say what axe-core finds wrong with pages, at desktop and phone width, light and dark, by a headless Chromium.

npm pack axe-core && tar -xzf axe-core-*.tgz
python tools/page_faults.py --axe package/axe.min.js runs/demo/report.html runs/suspects/report.html

axe-core is not part of the repository. The exit code is 1 where a fault is serious or critical.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from browser import Page, browser  # noqa: E402

WIDTHS = (1280, 390)
FAULTS = (
    "axe.run({resultTypes: ['violations']}).then(found => found.violations.map(one => ({id: one.id, "
    "impact: one.impact, help: one.help, count: one.nodes.length, first: one.nodes[0].html.slice(0, 160), "
    "why: one.nodes[0].failureSummary.slice(0, 300)})))"
)


def main() -> int:
    """Print the faults of every page as JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--axe", type=Path, required=True)
    parser.add_argument("pages", type=Path, nargs="+")
    given = parser.parse_args()
    axe, grave = given.axe.read_text(encoding="utf-8"), False
    with tempfile.TemporaryDirectory() as profile, browser(Path(profile)) as page:
        for path in given.pages:
            for width in WIDTHS:
                for scheme in ("light", "dark"):
                    for fault in faults(page, path, axe, width, scheme):
                        grave |= fault["impact"] in ("serious", "critical")
                        print(json.dumps({"page": path.name, "width": width, "scheme": scheme, **fault}))
    return int(grave)


def faults(page: Page, path: Path, axe: str, width: int, scheme: str) -> list[dict[str, Any]]:
    """Return the faults of a page, its closed parts opened."""
    page.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
    page.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    page.open(path)
    page.run("document.querySelectorAll('details').forEach(one => { one.open = true })")
    page.run(f"{axe}; 0")
    return page.run(FAULTS)


if __name__ == "__main__":
    sys.exit(main())
