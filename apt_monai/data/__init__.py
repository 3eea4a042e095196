"""Data: study folders to data lists, splits by subject, the slice cache, and synthetic volumes to NIfTI.

Nothing is imported here, so that listing a folder's studies does not wait for torch and MONAI.
"""
