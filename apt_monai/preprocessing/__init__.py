"""Raw scans of a study to skull-stripped volumes on one grid, and the way back."""
