"""Speed and memory, measured against the published way; not part of the package."""
