"""Tiny DICOM series for tests, written byte by byte: MR images, explicit VR, little endian."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

MR_IMAGE = "1.2.840.10008.5.1.4.1.1.4"
EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
AXIAL = (1, 0, 0, 0, 1, 0)
SAGITTAL = (0, 1, 0, 0, 0, -1)


def _element(group: int, number: int, vr: str, value: Any) -> bytes:
    if isinstance(value, bytes):
        content = value
    elif vr == "US":
        content = struct.pack("<H", value)
    else:
        numbers = isinstance(value, (tuple, list, np.ndarray))
        content = ("\\".join(f"{v:.10g}" for v in value) if numbers else str(value)).encode()
    if len(content) % 2:
        content += b"\0" if vr in ("UI", "OW", "OB") else b" "
    length = struct.pack("<HI", 0, len(content)) if vr in ("OW", "OB") else struct.pack("<H", len(content))
    return struct.pack("<HH", group, number) + vr.encode() + length + content


def write_slice(path: Path, pixels: np.ndarray, position: Any = (0, 0, 0), **changes: Any) -> Path:
    """Write one slice, (columns, rows) int16. A change is a keyword below; None leaves the tag out."""
    tags: dict[str, Any] = {
        "series": "1.2.3", "description": "MPRAGE", "echo_time": 3.5, "echo_number": 1, "position": position,
        "orientation": AXIAL, "pixel_spacing": (1, 1), "frames": None, "photometric": "MONOCHROME2", "slope": None,
        "intercept": None, "sop_class": MR_IMAGE, "charset": None, "patient": None, "study": "1.2", "date": None,
        "frame": None,
        "rows": pixels.shape[1], "columns": pixels.shape[0],
    } | changes  # fmt: skip
    samples = 3 if tags["photometric"] == "RGB" else 1
    data = np.repeat(pixels.T[..., None], samples, axis=-1).astype("<i2" if samples == 1 else "u1").tobytes()
    bits = 16 if samples == 1 else 8
    elements = [
        (0x0008, 0x0005, "CS", tags["charset"]), (0x0008, 0x0016, "UI", tags["sop_class"]),
        (0x0008, 0x0018, "UI", f"1.2.3.{abs(hash(path)) % 10**9}"),
        (0x0008, 0x0020, "DA", tags["date"]), (0x0008, 0x0060, "CS", "MR"),
        (0x0008, 0x103E, "LO", tags["description"]),
        (0x0010, 0x0020, "LO", tags["patient"]), (0x0018, 0x0081, "DS", tags["echo_time"]),
        (0x0018, 0x0086, "IS", tags["echo_number"]),
        (0x0020, 0x000D, "UI", tags["study"]), (0x0020, 0x000E, "UI", tags["series"]),
        (0x0020, 0x0032, "DS", tags["position"]), (0x0020, 0x0037, "DS", tags["orientation"]),
        (0x0020, 0x0052, "UI", tags["frame"]),
        (0x0028, 0x0002, "US", samples), (0x0028, 0x0004, "CS", tags["photometric"]),
        *([(0x0028, 0x0006, "US", 0)] if samples == 3 else []),
        (0x0028, 0x0008, "IS", tags["frames"]), (0x0028, 0x0010, "US", tags["rows"]),
        (0x0028, 0x0011, "US", tags["columns"]), (0x0028, 0x0030, "DS", tags["pixel_spacing"]),
        (0x0028, 0x0100, "US", bits), (0x0028, 0x0101, "US", bits), (0x0028, 0x0102, "US", bits - 1),
        (0x0028, 0x0103, "US", int(samples == 1)), (0x0028, 0x1052, "DS", tags["intercept"]),
        (0x0028, 0x1053, "DS", tags["slope"]),
        (0x7FE0, 0x0010, "OW", tags.get("data", data * int(tags["frames"] or 1))),
    ]  # fmt: skip
    meta = b"".join(
        _element(0x0002, *rest)
        for rest in (
            (0x0001, "OB", b"\0\1"),
            (0x0002, "UI", MR_IMAGE),
            (0x0003, "UI", "1.2.3.4"),
            (0x0010, "UI", EXPLICIT_LITTLE_ENDIAN),
            (0x0012, "UI", "1.2.3.5"),
        )  # fmt: skip
    )
    head = b"\0" * 128 + b"DICM" + _element(0x0002, 0x0000, "UL", struct.pack("<I", len(meta))) + meta
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + b"".join(_element(*element) for element in elements if element[3] is not None))
    return path


def write_series(
    folder: Path,
    volume: np.ndarray,
    origin: Any = (-10, -20, 30),
    spacing: tuple[float, float, float] = (1.5, 2, 3),
    orientation: Any = AXIAL,
    name: str = "{:03d}.dcm",
    **changes: Any,
) -> Mapping[int, Path]:
    """Write a volume, (columns, rows, slices), with ``spacing`` in mm along these; file names run against the slices.

    Returns the files by slice.
    """
    normal = np.cross(orientation[:3], orientation[3:])
    count = volume.shape[2]
    return {
        k: write_slice(
            folder / name.format(count - k),
            volume[:, :, k],
            np.asarray(origin) + k * spacing[2] * normal,
            orientation=orientation,
            pixel_spacing=(spacing[1], spacing[0]),  # DICOM: between rows, then between columns
            **changes,
        )
        for k in range(count)
    }
