"""``python -m benchmarks``: measure speed and memory against the published way."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.profiling import run_benchmarks


def main() -> None:
    """Measure, and print the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--full", action="store_true", help="the paper's numbers of steps: about an hour on two cores")
    parser.add_argument("--output", default="bench", metavar="DIR", help="where results.md and results.json go")
    arguments = parser.parse_args()
    run_benchmarks(arguments.output, full=arguments.full)
    print((Path(arguments.output) / "results.md").read_text(encoding="utf-8"))
    print(f"Written to {arguments.output}/results.md and results.json")


if __name__ == "__main__":
    main()
