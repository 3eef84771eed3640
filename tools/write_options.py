"""Write vlmsel/assets/options.json: the help and the options of every command, for answers without torch.

python tools/write_options.py
"""

from __future__ import annotations

from vlmsel.cli import COMMANDS, described
from vlmsel.runs import write_json
from vlmsel.shell.listed import FILE


def main() -> None:
    """Write the file."""
    write_json(FILE, {command: described(command) for command in COMMANDS})
    print(FILE)


if __name__ == "__main__":
    main()
