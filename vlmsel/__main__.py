"""`python -m vlmsel <command> ...` is `vlmsel <command> ...`, for torchrun and where scripts are not on the path."""

import sys

from vlmsel.cli import main

if __name__ == "__main__":
    sys.exit(main())
