"""Print the table model x task of a study and write it beside its results.

    python tools/result_table.py runs/easy_vqa

reads `seed*/evaluate/<model>/<task>/metrics.json`; writes `table.md`, `table.png` and `results.json`. Intervals are
95 % over seeds, the last column's are paired with Random by seed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vlmsel.reporting.results import show_results
from vlmsel.studies.demo import ROWS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    show_results(folder, folder.name, ROWS, {})


if __name__ == "__main__":
    main()
