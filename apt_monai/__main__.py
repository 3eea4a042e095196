"""``python -m apt_monai``."""

from __future__ import annotations

import sys

from apt_monai.cli.commands import main

if __name__ == "__main__":
    sys.exit(main())
