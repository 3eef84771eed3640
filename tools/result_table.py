"""Print the table model x task of a study and write it beside its results.

    python tools/result_table.py runs/easy_vqa

reads `seed*/evaluate/<model>/<task>/metrics.json`; writes `table.md` and `table.png`. Intervals are 95 % over seeds,
the last column's are paired with Random by seed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vlmsel.commands.demo import BEFORE, FULL, SCORERS
from vlmsel.reporting.tables import as_markdown, as_text, collect, draw, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    values, tasks = collect(args.folder, [BEFORE, *SCORERS, FULL])
    table = rows(values, tasks)
    (args.folder / "table.md").write_text(as_markdown(table))
    draw(values, tasks, args.folder / "table.png", args.folder.name)
    print(as_text(table))


if __name__ == "__main__":
    main()
