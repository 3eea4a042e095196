"""The command line, ``python -m apt_monai``."""
