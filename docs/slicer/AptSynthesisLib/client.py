"""A client of the synthesis server: which studies there are, what to synthesise, and its volumes as files.

Plain standard library: it runs in 3D Slicer's Python and in any other.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any


class ServerError(RuntimeError):
    """The server refused, and says why; or it cannot be reached."""


class SynthesisClient:
    """The server's studies, models and volumes.

    Args:
        address: such as ``"http://127.0.0.1:8000"``.
        timeout: how long to wait for an answer, in seconds; a synthesis takes a while on a CPU.
    """

    def __init__(self, address: str, timeout: float = 1800.0) -> None:
        self.address = address.rstrip("/")
        self.timeout = timeout

    def models(self) -> dict[str, dict[str, str]]:
        """By model, its contrasts: what people read by name, such as ``{"t1ce": "T1Gd"}``."""
        return {name: model["contrasts"] for name, model in self._json("GET", "/info/")["models"].items()}

    def studies(self) -> dict[str, dict[str, Any]]:
        """By study, what was acquired, what was synthesised, what is lacking by each model, and what its images are."""
        return self._json("GET", "/datastore/?output=all")["studies"]

    def next_lacking(self, model: str) -> str | None:
        """The next study that lacks a contrast of the model; None where there is none."""
        return self._json("POST", "/activelearning/lacking", json.dumps({"model": model}).encode()).get("study")

    def acquired_images(self, study: dict[str, Any]) -> list[str]:
        """The ids of a study's acquired images, those of :meth:`studies`."""
        return [image for image in study["images"] if "SYNTHETIC" not in image]

    def synthesize(self, model: str, study: str, target: str | None = None, raw: bool = False) -> list[str]:
        """Synthesise a contrast, or all that the study lacks; gives the ids of the images, to be downloaded."""
        params = json.dumps({"raw": raw} if target is None else {"target": target, "raw": raw})
        body = urllib.parse.urlencode({"params": params}).encode()
        place = f"/infer/{urllib.parse.quote(model)}?image={urllib.parse.quote(study)}&output=json"
        return list(self._json("POST", place, body)["images"].values())

    def download(self, image: str, folder: str | Path) -> Path:
        """An image's file, in a folder that is there."""
        path = Path(folder) / f"{image}.nii.gz"
        path.write_bytes(self._bytes("GET", f"/datastore/image?image={urllib.parse.quote(image)}"))
        return path

    def _json(self, method: str, place: str, body: bytes | None = None) -> dict[str, Any]:
        return json.loads(self._bytes(method, place, body))

    def _bytes(self, method: str, place: str, body: bytes | None = None) -> bytes:
        request = urllib.request.Request(self.address + place, data=body, method=method)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            raise ServerError(self._reason(error)) from error
        except OSError as error:
            raise ServerError(f"{self.address} does not answer ({error}): is the server running?") from error

    @staticmethod
    def _reason(error: urllib.error.HTTPError) -> str:
        try:
            return str(json.loads(error.read())["detail"])
        except (ValueError, KeyError, TypeError):
            return f"the server answered {error.code} {error.reason}"
