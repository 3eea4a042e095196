"""The systems: one system, one file, one contract."""
