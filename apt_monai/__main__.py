"""``python -m apt_monai``."""

from __future__ import annotations

import io
import os
import sys

# Before torch is loaded: threads that wait sleep. Spinning ones are fourfold slower beside a busy neighbour.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from apt_monai.cli import main

if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show does not stop us
    sys.exit(main())
