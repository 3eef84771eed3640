"""Align the tiny model as `vlmsel demo --preset full` does, and put the result into vlmsel/assets/aligned.

    python tools/build_aligned.py [--out DIR]

takes 4 minutes on two cores. The same seed, threads and versions give the same projector to the bit.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from vlmsel.commands.call import call
from vlmsel.studies.demo import PRESETS, Demo

ASSET = Path(__file__).parents[1] / "vlmsel" / "assets" / "aligned"


def build(out: Path) -> None:
    """Align into a folder of its own, and copy the model without the machine's name and the tokenizer, a copy."""
    with tempfile.TemporaryDirectory() as folder:
        Demo(Path(folder), PRESETS["full"], call).align()
        copies = shutil.ignore_patterns("tokenizer")  # it is the language model's
        shutil.copytree(Path(folder, "align", "model"), out, ignore=copies, dirs_exist_ok=True)
    path = out / "vlmsel_config.json"
    content = json.loads(path.read_text())
    content["environment"].pop("platform", None)
    path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ASSET)
    build(parser.parse_args().out)
