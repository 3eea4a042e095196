"""Doors for other programs: the MONAI Label app. Only ``label`` and ``routes`` need MONAI Label to be there."""
