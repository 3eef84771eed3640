"""Run a program as several processes: `python together.py COUNT PROGRAM`.

What `torchrun` tells its processes is told here, but libraries are imported once, before the processes part, which is
most of the time a small test takes. Ends with 1 where one of them failed.
"""

import os
import runpy
import socket
import sys
from pathlib import Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run(program: str, rank: int) -> int:
    """Be the process of this rank; return its exit code."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    try:
        runpy.run_path(program)
    except BaseException as problem:
        print(f"process {rank}: {problem!r}", file=sys.stderr, flush=True)
        return 1
    return 0


def main(count: int, program: str) -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    import tiny_models  # noqa: F401
    import tiny_pool  # noqa: F401

    both = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    os.environ |= {**both, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    children = []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            code = run(program, rank)
            sys.stdout.flush()
            os._exit(code)
        children.append(child)
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0 for child in children))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
