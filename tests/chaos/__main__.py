"""Chaos: faults and operations drawn from a seed, and a checker of every promise.

python -m tests.chaos [--seed N] [--minutes M] [--topology single|set|full] [--times K]
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
from pathlib import Path

from tests.chaos.storm import storm


def main() -> int:
    """Run chaos; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--topology", choices=("single", "set", "full"), default="single")
    parser.add_argument("--times", type=int, default=1, help="so many seeds, one after another")
    given = parser.parse_args()
    first = random.randrange(1_000_000) if given.seed is None else given.seed
    failed = 0
    for seed in range(first, first + given.times):
        directory = Path(tempfile.mkdtemp(prefix=f"chaos-{given.topology}-{seed}-"))
        say(f"seed {seed}: traces in {directory}")
        verdict = asyncio.run(storm(seed, given.minutes * 60, given.topology, directory))
        say(verdict.text + "\n")
        failed += bool(verdict.wrong)
        if not verdict.wrong:
            shutil.rmtree(directory)
    return 1 if failed else 0


def say(text: str) -> None:
    """Print at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
