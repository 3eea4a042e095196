"""The HTTP side of the MONAI Label app: what is served, and how everything else is refused.

MONAI Label's own routes read paths of the server, write where an id says, take uploads of any size and hold up every
other request while a model computes. So they are replaced: what is listed in :func:`routes` is served, after its
arguments were looked at, and nothing else.
"""

from __future__ import annotations

import asyncio
import json
import logging
import tempfile
from collections.abc import Awaitable, Callable, Collection
from html import escape
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from requests_toolbelt import MultipartEncoder
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message

from apt_monai.apps.guards import Refused, checked_name
from apt_monai.apps.service import Answer, Asked, SynthesisService
from apt_monai.apps.studies import image_id
from apt_monai.apps.worker import Worker, log_failure
from apt_monai.errors import StudyError
from apt_monai.io.sidecar import NOTICE

logger = logging.getLogger(__name__)

Endpoint = Callable[[Request], Awaitable[Response]]

STRATEGY = "lacking"
"""The name of the strategy "next study that lacks a contrast"."""
MAX_UPLOAD = 512 << 20
"""So many bytes of a request's body are accepted by default."""
_WORDS = ("", "info", "datastore", "activelearning", "infer", "train")
_MAX_PARAMS = 64 << 10  # bytes of a form field


class Routes:
    """What is served.

    Args:
        service: what synthesises.
        info: gives what the app says of itself.
        max_upload: so many bytes of a request's body are accepted.
        hosts: the names that the server may be asked under, beside ``localhost`` and IP addresses.
    """

    def __init__(
        self,
        service: SynthesisService,
        info: Callable[[], dict[str, Any]],
        max_upload: int = MAX_UPLOAD,
        hosts: Collection[str] = (),
    ) -> None:
        self.hosts = hosts
        self.service = service
        self.studies = service.studies
        self.app_info = info
        self.max_upload = max_upload
        self.worker = Worker(service)

    def routes(self) -> list[Route]:
        """The routes, and a last one that refuses all others."""
        served: list[tuple[str, str, Endpoint]] = [
            ("GET", "/", self.page),
            ("GET", "/info/", self.info),
            ("GET", "/datastore/", self.datastore),
            ("PUT", "/datastore/", self.add_image),
            ("GET", "/datastore/image", self.image),
            ("PUT", "/datastore/image", self.add_image),
            ("GET", "/datastore/image/info", self.image_info),
            ("POST", "/activelearning/{strategy}", self.next_sample),
            ("POST", "/infer/{model}", self.infer),
            ("GET", "/train/", self.train_status),
        ]
        methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
        return [
            *(Route(path, _answering(endpoint, self.hosts), methods=[method]) for method, path, endpoint in served),
            Route("/{path:path}", _answering(self.refuse, self.hosts), methods=methods),
        ]

    async def page(self, request: Request) -> Response:
        """The studies as a page for people."""
        return HTMLResponse(_page(await asyncio.to_thread(self.studies.json)))

    async def info(self, request: Request) -> Response:
        """What the app is and can do."""
        return JSONResponse(await asyncio.to_thread(self.app_info))

    async def datastore(self, request: Request) -> Response:
        """How many studies there are; with ``output=all`` every image and study."""
        output = request.query_params.get("output", "stats")
        if output not in ("stats", "all"):
            raise Refused(422, f"output is {output[:60]!r}: valid are stats and all")
        return JSONResponse(await asyncio.to_thread(self.studies.json if output == "all" else self.studies.status))

    async def image(self, request: Request) -> Response:
        """An image's file."""
        path = await asyncio.to_thread(self.studies.image, request.query_params.get("image", ""))
        name = f"{checked_name('image', request.query_params['image'])}{path.name[len(image_id(path)) :]}"
        return FileResponse(path, media_type="application/octet-stream", filename=name)

    async def image_info(self, request: Request) -> Response:
        """What is known of an image."""
        name = request.query_params.get("image", "")
        return JSONResponse(await asyncio.to_thread(self.studies.get_image_info, name))

    async def next_sample(self, request: Request) -> Response:
        """The next study that lacks a contrast."""
        strategy = checked_name("strategy", request.path_params["strategy"])
        if strategy != STRATEGY:
            raise Refused(404, f"there is no strategy {strategy!r}; valid is {STRATEGY}")
        body = await self._limited(request, _MAX_PARAMS).body()
        try:
            params = json.loads(body or "{}")
        except (ValueError, RecursionError) as error:
            raise Refused(422, f"the request is no JSON: {error}") from error
        model = params.get("model") if isinstance(params, dict) else None
        if model is not None:
            checked_name("model", model)
        return JSONResponse(await asyncio.to_thread(self.studies.next_lacking, model))

    async def add_image(self, request: Request) -> Response:
        """Take a contrast of a study."""
        if "multipart/form-data" not in request.headers.get("content-type", ""):
            raise Refused(415, "an image is sent as a form (multipart/form-data) with the field file")
        async with self._limited(request, self.max_upload).form(max_files=1, max_part_size=_MAX_PARAMS) as form:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise Refused(422, "there is no file: send the image in the field file")
            name = request.query_params.get("image") or image_id(file.filename or "")
            checked_name("image", name)
            return JSONResponse({"image": await asyncio.to_thread(self._add, name, file)})

    def _add(self, name: str, file: UploadFile) -> str:
        with tempfile.TemporaryDirectory() as folder:
            kept = Path(folder) / "upload.nii"
            content = file.file.read(2)
            kept = kept.with_name("upload.nii.gz") if content == b"\x1f\x8b" else kept
            with open(kept, "wb") as to:
                while content:
                    to.write(content)
                    content = file.file.read(1 << 20)
            return self.studies.add(name, kept)

    async def infer(self, request: Request) -> Response:
        """Synthesise; the answer holds one volume, and what was published besides."""
        output = request.query_params.get("output") or "all"
        if output not in ("all", "image", "json"):
            raise Refused(422, f"output is {output[:60]!r}: valid are all, image and json")
        if request.query_params.get("session_id"):
            raise Refused(422, "there are no sessions here: send the images by PUT /datastore/image, then name them")
        async with self._limited(request, _MAX_PARAMS).form(max_files=1, max_part_size=_MAX_PARAMS) as form:
            if any(isinstance(form.get(field), UploadFile) for field in ("file", "label")):
                raise Refused(422, "no file is taken here: send images by PUT /datastore/image, then name them")
            params = form.get("params")
        asked = Asked.parse(
            request.path_params["model"],
            request.query_params.get("image", ""),
            params if isinstance(params, str) else None,
        )
        await asyncio.to_thread(self.service.study_of, asked)  # what is wrong is said before the queue
        answer = await self.worker(asked)
        made = ", ".join(answer.params["images"])
        logger.info("%s: %s by %s in %.1f s", answer.params["study"], made, asked.model, answer.seconds)
        return _sent(answer, output)

    async def train_status(self, request: Request) -> Response:
        """Nothing is trained here; clients ask."""
        return JSONResponse({}, 200 if "check_if_running" not in request.query_params else 404)

    async def refuse(self, request: Request) -> Response:
        """Everything else."""
        raise Refused(404, "this server has no such page: see docs/monai_label.md for what it answers")

    def _limited(self, request: Request, limit: int) -> Request:
        """The request, whose body may have so many bytes."""
        declared = request.headers.get("content-length", "0")
        if not declared.isdigit() or int(declared) > limit:
            raise Refused(413, f"the request has {declared[:20]} bytes; at most {limit} are accepted")
        received = 0

        async def receive() -> Message:
            nonlocal received
            message = await request.receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise Refused(413, f"the request has more than {limit} bytes, which is the most that is accepted")
            return message

        return Request(request.scope, receive)


def _page(listing: dict[str, Any]) -> str:
    rows = []
    for name, study in listing["studies"].items():
        links = ", ".join(f'<a href="datastore/image?image={escape(i)}">{escape(i)}</a>' for i in study["images"])
        lacking = "; ".join(f"{model}: {', '.join(missing)}" for model, missing in study["lacking"].items() if missing)
        rows.append(f"<tr><td>{escape(name)}<td>{links}<td>{escape(study['problem'] or lacking or 'nothing')}")
    return (
        "<!doctype html><meta charset=utf-8><title>apt_monai</title>"
        "<style>body{font:15px sans-serif;margin:2em}td,th{text-align:left;vertical-align:top;padding:.3em 1em}</style>"
        f"<h1>Studies</h1><p>{escape(NOTICE.capitalize())}, where the name says SYNTHETIC."
        f"<table><tr><th>study<th>images<th>lacks{''.join(rows)}</table>"
    )


def _sent(answer: Answer, output: str) -> Response:
    if output == "json":
        return JSONResponse(answer.params)
    if output == "image":
        headers = {"content-disposition": f'attachment; filename="{answer.name}"'}
        return Response(answer.content, media_type="application/octet-stream", headers=headers)
    parts = MultipartEncoder(
        {
            "params": (None, json.dumps(answer.params), "application/json"),
            "image": (answer.name, answer.content, "application/octet-stream"),
        }
    )
    return Response(parts.to_string(), media_type=parts.content_type)


def _check_asker(request: Request, hosts: Collection[str]) -> None:
    """Refuse pages of other sites: a browser sends what they ask for, too, under their name or, rebound, their host."""
    host = request.headers.get("host", "")
    name = urlsplit(f"//{host}").hostname or ""
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != host:
        raise Refused(403, "a page of another site asks; this server answers its own address alone")
    if name not in ("localhost", *hosts):
        try:
            ip_address(name)
        except ValueError:
            raise Refused(
                403, f"the server is asked as {name[:60]!r}: use its IP address, or --conf hosts NAME"
            ) from None


def _answering(endpoint: Endpoint, hosts: Collection[str]) -> Endpoint:
    """An endpoint whose refusals become answers with a message, and whose failures leave no patient in the log."""

    async def answer(request: Request) -> Response:
        try:
            _check_asker(request, hosts)
            return await endpoint(request)
        except Refused as refused:
            status, message = refused.status, refused.message
        except StudyError as error:
            status, message = 422, str(error)
        except HTTPException as error:  # of a form that cannot be read
            status, message = 422, f"the request cannot be read: {error.detail}"
        except OSError as error:
            log_failure(error)
            status, message = 500, f"the server cannot read or write a file: {error.strerror or 'see its log'}"
        except Exception as error:
            log_failure(error)
            status, message = 500, f"the server failed ({type(error).__name__}); its log has the place"
        return JSONResponse({"detail": message}, status)

    return answer


def without_query(record: logging.LogRecord) -> bool:
    """A filter of uvicorn's access log: of what was asked for the first word of the path, if it is known."""
    if isinstance(record.args, tuple) and len(record.args) == 5:
        client, method, path, version, status = record.args
        word = str(path).split("?")[0].strip("/").split("/")[0]
        record.args = (client, method, f"/{word if word in _WORDS else '...'}", version, status)
    return True
