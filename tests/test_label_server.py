"""The MONAI Label app behind the real server: ``make test-label`` runs this, in the server's environment."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("monailabel", reason="needs the server's environment: make test-label")

import psutil
import requests
from monailabel.client import MONAILabelClient
from monailabel.client.client import MONAILabelClientException
from tiny_studies import write_nifti

from apt_monai import load
from apt_monai.apps.phantoms import MAIN
from apt_monai.phantom import write_phantom_dataset

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs" / "slicer"))
from AptSynthesisLib.client import ServerError, SynthesisClient  # noqa: E402

pytestmark = pytest.mark.slow

MAX_VOXELS, MAX_UPLOAD = 100_000, 200_000
PATIENT = "Muster"  # in names of files and folders, and in requests


@dataclass(frozen=True)
class Server:
    """The running server.

    Args:
        address: of HTTP.
        folder: ``studies``, ``app`` and the log lie in it.
        phantoms: by ``"brats"`` and ``"adni"``, a whole phantom study.
        process: its number.
    """

    address: str
    folder: Path
    phantoms: dict[str, Path]
    process: int

    def study(self, name: str, kind: str = "brats", without: tuple[str, ...] = ("t1ce",)) -> Path:
        """A new study of the server's: a phantom without some contrasts."""
        folder = self.folder / "studies" / name
        folder.mkdir()
        for file in self.phantoms[kind].glob("*.nii.gz"):
            contrast = file.name.split("_")[-1]
            if contrast.removesuffix(".nii.gz") not in without:
                shutil.copyfile(file, folder / f"{name}_{contrast}")
        return folder

    def ask(self, method: str, place: str, **arguments: Any) -> requests.Response:
        return requests.request(method, self.address + place, timeout=800, **arguments)

    def infer(self, study: str, model: str = "apt_brats", output: str = "json", **params: Any) -> requests.Response:
        place = f"/infer/{model}?image={study}&output={output}"
        return self.ask("POST", place, data={"params": json.dumps(params)})

    def log(self) -> str:
        texts = [path.read_text(errors="replace") for path in (self.folder / "app" / "logs").iterdir()]
        return "\n".join([(self.folder / "server.log").read_text(errors="replace"), *texts])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """``monailabel start_server`` as a user starts it, ended as a user ends it."""
    folder = tmp_path_factory.mktemp("a label server")  # with spaces
    phantoms = {
        kind: write_phantom_dataset(folder / kind, kind, 1, 1, 6.0, progress=False)[0] for kind in ("brats", "adni")
    }
    for name in ("studies", "temporary"):
        (folder / name).mkdir()
    (folder / "app").mkdir()
    (folder / "app" / "main.py").write_text(MAIN)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["start_server", "--app", "app", "--studies", "studies", "--host", "127.0.0.1", "--port", str(port)]
    words += [
        "--conf",
        "max_voxels",
        str(MAX_VOXELS),
        "--conf",
        "max_upload",
        str(MAX_UPLOAD),
        "--conf",
        "device",
        "cpu",
    ]
    words += ["--access_log"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "TMPDIR": str(folder / "temporary"),
        "APT_MONAI_HOME": str(folder / "home"),
    }
    with open(folder / "server.log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "monailabel.main", *words], cwd=folder, env=environment, stdout=log, stderr=log
        )
    running = Server(f"http://127.0.0.1:{port}", folder, phantoms, process.pid)
    try:
        for _ in range(240):
            assert process.poll() is None, running.log()
            try:
                running.ask("GET", "/info/")
                break
            except requests.ConnectionError:
                time.sleep(0.5)
        yield running
    finally:
        started = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
    assert psutil.wait_procs(started, timeout=30)[1] == []  # none is left behind


def voxels(content: bytes) -> nib.Nifti1Image:
    return nib.Nifti1Image.from_bytes(gzip.decompress(content))


# What it is for


def test_the_real_client_gets_an_exact_float32_volume_on_the_acquired_grid(server: Server, tmp_path: Path) -> None:
    study = server.study("exact", without=("t1ce", "flair"))
    affine = np.array([[-6.0, 0.3, 0.1, 7], [0.2, -5.9, 0.4, 8], [0.1, 0.5, 6.1, -9], [0, 0, 0, 1]])  # sheared
    for path in study.glob("*.nii.gz"):
        image = nib.Nifti1Image(np.asarray(nib.load(path).dataobj), affine)
        image.set_sform(affine, 1)
        nib.save(image, path)
    client = MONAILabelClient(server.address, tmpdir=str(tmp_path))
    slicers = {"result_extension": ".nrrd", "result_dtype": "uint8", "target": "t1ce"}  # what stock Slicer asks for
    file, params = client.infer("apt_brats", "exact_t1", slicers)
    got = nib.load(file)
    sources = {name: study / f"exact_{name}.nii.gz" for name in ("t1", "t2")}
    files = {"subject": "exact", **sources, "seg": study / "exact_seg.nii.gz"}
    wanted = nib.load(load("brats", device="cpu").synthesize(files, tmp_path / "out", ["t1ce"])["t1ce"])
    assert params["images"] == {"t1ce": "exact_t1ce_SYNTHETIC"}
    assert params["synthetic"] and Path(file).name == "exact_t1ce_SYNTHETIC.nii.gz"
    assert got.get_data_dtype() == np.float32
    assert (got.affine == nib.load(study / "exact_t1.nii.gz").affine).all()
    assert np.allclose(got.get_fdata(), wanted.get_fdata(), rtol=1e-4, atol=1e-2)
    assert got.header["intent_name"].item() == b"SYNTHETIC"


@pytest.mark.parametrize("kind", ["brats", "adni"])
def test_all_that_is_lacking_becomes_images_of_the_datastore(server: Server, kind: str) -> None:
    name = f"all-{kind}"
    server.study(name, kind, without=("t1", "flair"))
    answer = server.infer(name, f"apt_{kind}").json()
    listing = server.ask("GET", "/datastore/?output=all").json()
    assert sorted(answer["images"]) == (["flair", "t1"] if kind == "brats" else ["t1"])
    assert listing["studies"][name]["lacking"][f"apt_{kind}"] == []
    for contrast, image in answer["images"].items():
        assert image == f"{name}_{contrast}_SYNTHETIC" and listing["objects"][image]["image"]["info"]["synthetic"]
        content = server.ask("GET", f"/datastore/image?image={image}").content
        assert voxels(content).get_data_dtype() == np.float32
        assert content == (server.folder / "studies" / name / f"{image}.nii.gz").read_bytes()
        sidecar = json.loads((server.folder / "studies" / name / f"{image}.json").read_text())
        assert sidecar["synthetic"] and sidecar["subject"] == name
        assert f"{image}_uncertainty" in listing["objects"]


def test_a_published_image_is_never_a_source(server: Server) -> None:
    server.study("published", without=("t1", "t1ce"))
    first = server.infer("published", target="t1", output="image").content
    again = server.infer("published", target="t1ce").json()
    assert again["sources"] == ["flair", "t2"]
    assert server.infer("published", target="t1", output="image").content == first
    refused = server.infer("published", target="t1ce", contrasts={"t1": "published_t1_SYNTHETIC"})
    assert refused.status_code == 422 and "was synthesised" in refused.json()["detail"]


def test_contrasts_can_be_named_in_the_request(server: Server) -> None:
    server.study("named", without=("t1ce",))
    answer = server.infer("named", target="t1ce", contrasts={"t2": "named_t2"}).json()
    assert answer["sources"] == ["t2"]


def test_an_acquired_but_spoilt_contrast_is_synthesised_from_the_others(server: Server) -> None:
    server.study("spoilt", without=())
    assert server.infer("spoilt").status_code == 422
    assert server.infer("spoilt", target="t2").json()["sources"] == ["flair", "t1", "t1ce"]


@pytest.mark.timeout(900)
def test_a_raw_study_comes_back_on_a_scans_own_grid(server: Server) -> None:
    (raw,) = write_phantom_dataset(server.folder / "adni-raw", "adni-raw", 1, 1, 6.0, progress=False)
    study = server.folder / "studies" / "raw"
    study.mkdir()
    for name in ("t1", "t2"):
        shutil.copyfile(next(raw.glob(f"*_{name}.nii.gz")), study / f"raw_{name}.nii.gz")
    shutil.copyfile(raw.parent / ".truth" / raw.name / "brain_t1.nii.gz", study / "raw_mask.nii.gz")
    assert server.infer("raw", "apt_adni").status_code == 422  # not on one grid
    assert server.infer("raw", "apt_adni", raw="yes").status_code == 422
    answer = server.infer("raw", "apt_adni", raw=True)
    assert answer.json()["images"] == {"pd": "raw_pd_SYNTHETIC"}
    made, t2 = nib.load(study / "raw_pd_SYNTHETIC.nii.gz"), nib.load(study / "raw_t2.nii.gz")
    assert made.shape == t2.shape and np.allclose(made.affine, t2.affine)
    assert len(list(study.glob("*.png"))) == 2
    assert server.infer("raw", "apt_adni", raw=True).json()["sources"] == ["t1", "t2"]


def test_the_next_sample_is_a_study_that_lacks_a_contrast(server: Server, tmp_path: Path) -> None:
    server.study("000-first", "adni", without=("pd",))
    client = MONAILabelClient(server.address, tmpdir=str(tmp_path))
    sample = client.next_sample("lacking", {"model": "apt_adni"})
    assert (sample["study"], sample["lacking"]) == ("000-first", ["pd"])
    server.infer("000-first", "apt_adni")
    assert client.next_sample("lacking", {"model": "apt_adni"}).get("study") != "000-first"


def test_an_uploaded_study_is_synthesised(server: Server, tmp_path: Path) -> None:
    client = MONAILabelClient(server.address, tmpdir=str(tmp_path))
    for contrast in ("t1", "t2"):
        file = next(server.phantoms["brats"].glob(f"*_{contrast}.nii.gz"))
        assert client.upload_image(str(file), f"uploaded_{contrast}") == {"image": f"uploaded_{contrast}"}
    assert list(server.infer("uploaded", target="t1ce").json()["images"]) == ["t1ce"]


def test_what_slicer_needs_works_without_slicer(server: Server, tmp_path: Path) -> None:
    server.study("slicer", without=("t1ce",))
    client = SynthesisClient(server.address)
    assert client.models()["apt_brats"]["t1ce"] == "T1Gd"
    study = client.studies()["slicer"]
    acquired = client.acquired_images(study)
    assert acquired == ["slicer_flair", "slicer_t1", "slicer_t2"]
    made = client.synthesize("apt_brats", "slicer")
    assert made == ["slicer_t1ce_SYNTHETIC"]
    shapes = {nib.load(client.download(image, tmp_path)).shape for image in (*acquired, *made)}
    assert len(shapes) == 1
    assert client.acquired_images(client.studies()["slicer"]) == acquired
    with pytest.raises(ServerError, match="there is no study or image 'other'"):
        client.synthesize("apt_brats", "other")


def test_people_see_the_studies_in_a_browser(server: Server) -> None:
    server.study("page")
    page = server.ask("GET", "/")
    assert "datastore/image?image=page_t1" in page.text and "not a medical device" in page.text


# Many at once


def test_an_inference_blocks_no_other_request(server: Server) -> None:
    server.study("busy")
    with ThreadPoolExecutor(6) as pool:
        inferences = [pool.submit(server.infer, "busy", target="t1ce") for _ in range(5)]
        while "busy: t1ce" not in server.log():  # the first is done
            time.sleep(0.1)
        for place in ("/info/", "/datastore/?output=all", "/datastore/image?image=busy_t1"):
            assert server.ask("GET", place).status_code == 200
        assert not all(each.done() for each in inferences)
        assert [each.result().status_code for each in inferences] == [200] * 5


def test_a_process_that_was_killed_while_it_computed_is_replaced(server: Server) -> None:
    server.study("killed")
    with ThreadPoolExecutor(3) as pool:
        inferences = [pool.submit(server.infer, "killed") for _ in range(3)]
        time.sleep(1)
        for child in psutil.Process(server.process).children():
            if "spawn_main" in " ".join(child.cmdline()):
                child.kill()
        assert [each.result().status_code for each in inferences] == [200] * 3


@pytest.mark.timeout(900)
def test_fifty_requests_at_once_lose_nothing(server: Server) -> None:
    names = [f"many-{i}" for i in range(10)]
    for i, name in enumerate(names):
        server.study(name, without=(("t1", "t2", "t1ce", "flair")[i % 4],))
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda i: server.infer(names[i % 10], output="image"), range(50)))
    assert [answer.status_code for answer in answers] == [200] * 50
    for i, answer in enumerate(answers):
        name = names[i % 10]
        (file,) = (server.folder / "studies" / name).glob("*_SYNTHETIC.nii.gz")
        assert answer.content == file.read_bytes()
        assert file.name in answer.headers["content-disposition"]
        assert file.with_name(file.name.replace(".nii.gz", ".json")).is_file()


# Guards


@pytest.mark.parametrize(
    ("status", "method", "place"),
    [
        (422, "POST", "/infer/apt_brats?image=/etc/hostname"),
        (422, "POST", "/infer/apt_brats?image=../../secret/case"),
        (422, "POST", "/infer/apt_brats?image=guarded/../../x"),
        (422, "POST", "/infer/apt_brats"),
        (422, "POST", "/infer/apt_brats?image=guarded&output=dicom_seg"),
        (422, "POST", "/infer/apt_brats?image=guarded&session_id=1"),
        (422, "POST", "/infer/apt%20brats?image=guarded"),
        (404, "POST", "/infer/apt_other?image=guarded"),
        (404, "POST", "/infer/apt_brats?image=unknown"),
        (404, "POST", "/infer/apt_brats?image=guarded_pd"),
        (422, "POST", "/infer/apt_adni?image=guarded"),
        (422, "GET", "/datastore/image?image=../app/main"),
        (404, "GET", "/datastore/image?image=guarded_t1ce"),
        (404, "GET", "/datastore/image?image=guarded"),
        (404, "HEAD", "/datastore/image?image=unknown_t1"),
        (422, "GET", "/datastore/image/info?image=%2Fetc%2Fhostname"),
        (422, "GET", "/datastore/?output=train"),
        (404, "POST", "/activelearning/random"),
        (404, "POST", "/activelearning/..%2f"),
        (415, "PUT", "/datastore/image?image=guarded_t1ce"),
        # MONAI Label's other pages, some of which write or read what they are told
        (404, "PUT", "/datastore/label?image=guarded_t1&tag=../../x"),
        (404, "GET", "/datastore/label?label=guarded_t1&tag=final"),
        (404, "DELETE", "/datastore/image?id=guarded_t1"),
        (404, "GET", "/datastore/dataset"),
        (404, "PUT", "/session/"),
        (404, "PUT", "/model/apt_brats"),
        (404, "POST", "/train/apt_brats"),
        (404, "POST", "/batch/infer/apt_brats"),
        (404, "POST", "/infer/wsi/apt_brats?image=x"),
        (404, "GET", "/logs/"),
        (404, "GET", "/proxy/dicom/wado/x"),
        (404, "GET", "/ohif/index.html"),
        (404, "POST", "/reload"),
    ],
)
def test_a_bad_request_gets_a_status_and_a_message(server: Server, status: int, method: str, place: str) -> None:
    if not (server.folder / "studies" / "guarded").exists():
        server.study("guarded")
    answer = server.ask(method, place)
    assert answer.status_code == status
    assert method == "HEAD" or len(answer.json()["detail"]) > 20


def test_the_real_client_is_told_why(server: Server, tmp_path: Path) -> None:
    server.study("told")
    client = MONAILabelClient(server.address, tmpdir=str(tmp_path))
    with pytest.raises(MONAILabelClientException) as refusal:
        client.infer("apt_brats", "told", {"target": "pd"})
    assert "Status: 422" in refusal.value.msg and "valid are flair, t1, t1ce, t2" in refusal.value.msg


def spoil(study: Path, how: str) -> None:
    """Replace the T2 of a study by a bad file."""
    path = next(study.glob("*_t2.nii.gz"))
    image = nib.load(path)
    volume = np.asarray(image.dataobj)
    if how == "link":
        outside = study.parent.parent / f"{study.name}_t2.nii.gz"
        path.rename(outside)
        path.symlink_to(outside)
    elif how == "huge":
        nib.save(nib.Nifti1Image(np.zeros((100, 100, 100), np.int16), image.affine), path)
    elif how == "bomb":
        path.write_bytes(gzip.compress(image.to_bytes() + bytes(8 << 20)))
    elif how == "text":
        path.write_bytes(b"hello" * 200)
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif how == "nan":
        write_nifti(path, np.where(volume > 0, np.nan, 0).astype(np.float32), image.affine)
    elif how == "shape":
        write_nifti(path, volume[:-1], image.affine)
    elif how == "affine":
        write_nifti(path, volume, np.eye(4))
    elif how == "4D":
        write_nifti(path, np.stack([volume, volume], axis=-1), image.affine)
    elif how == "name":
        path.rename(path.with_name(f"{study.name}_{PATIENT}.nii.gz"))


@pytest.mark.parametrize(
    ("status", "how"),
    [
        (413, "huge"), (413, "bomb"), (415, "text"), (422, "link"), (422, "cut"), (422, "nan"), (422, "shape"),
        (422, "affine"), (422, "4D"), (422, "name"),
    ],
)  # fmt: skip
def test_a_bad_file_of_a_study_gets_a_status_and_a_message(server: Server, status: int, how: str) -> None:
    spoil(server.study(f"bad-{how}"), how)
    answer = server.infer(f"bad-{how}")
    assert answer.status_code == status
    assert len(answer.json()["detail"]) > 20
    assert not list((server.folder / "studies" / f"bad-{how}").glob("*SYNTHETIC*"))


@pytest.mark.parametrize(
    ("status", "image", "content"),
    [
        (413, "upload_t1", bytes(MAX_UPLOAD + 1)),
        (415, "upload_t1", b"hello" * 200),
        (413, "upload_t1", gzip.compress(nib.Nifti1Image(np.zeros((60, 60, 60), np.int8), np.eye(4)).to_bytes())),
        (422, "../evil_t1", None),
        (422, "upload_dwi", None),
        (422, "upload_t1_SYNTHETIC", None),
        (422, "", None),
        (422, "there_t1", None),
    ],
)
def test_a_bad_upload_gets_a_status_and_is_not_kept(
    server: Server, status: int, image: str, content: bytes | None
) -> None:
    if not (server.folder / "studies" / "there").exists():
        server.study("there")
    before = {path: path.stat().st_mtime_ns for path in server.folder.rglob("*.nii*")}
    content = content or next(server.phantoms["brats"].glob("*_t1.nii.gz")).read_bytes()
    file = ("", content) if not image else ("a.nii.gz", content)
    answer = server.ask("PUT", f"/datastore/image?image={image}", files={"file": file})
    assert answer.status_code == status
    assert len(answer.json()["detail"]) > 20
    assert {path: path.stat().st_mtime_ns for path in server.folder.rglob("*.nii*")} == before


def test_a_body_of_unknown_length_is_cut_off(server: Server) -> None:
    def endless() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.nii"\r\n\r\n'
        for _ in range(100):
            yield bytes(10_000)

    form = {"content-type": "multipart/form-data; boundary=x"}
    answer = server.ask("PUT", "/datastore/image?image=endless_t1", data=endless(), headers=form)
    assert answer.status_code == 413


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"content-type": "multipart/form-data"}, b"x"),
        ({"content-type": "multipart/form-data; boundary=x"}, b"--y\r\n\r\n"),
        ({"content-type": "application/x-www-form-urlencoded"}, b"params=%7B%22target"),
        ({"content-type": "application/x-www-form-urlencoded"}, b"params=5"),
    ],
)
def test_a_body_that_cannot_be_read_is_refused(server: Server, headers: dict[str, str], body: bytes) -> None:
    if not (server.folder / "studies" / "body").exists():
        server.study("body")
    answer = server.ask("POST", "/infer/apt_brats?image=body", data=body, headers=headers)
    assert answer.status_code == 422
    assert len(answer.json()["detail"]) > 20


@pytest.mark.parametrize("headers", [{"Origin": "http://evil.example"}, {"Host": "evil.example:8000"}])
def test_a_page_of_another_site_gets_nothing(server: Server, headers: dict[str, str]) -> None:
    assert server.ask("GET", "/datastore/?output=all", headers=headers).status_code == 403


def test_the_log_has_of_a_patient_the_studys_id_alone(server: Server) -> None:
    study = server.study("logged")
    shutil.copyfile(study / "logged_t1.nii.gz", study / f"{PATIENT}_t1_SYNTHETIC.nii.gz")  # is left out
    (study / f"{PATIENT}.pdf").touch()
    server.study("logged-bad").joinpath(f"logged-bad_{PATIENT}.nii.gz").write_bytes(b"hello")
    (server.folder / "studies" / f"Anna {PATIENT}").mkdir(exist_ok=True)
    assert server.infer("logged").status_code == 200
    for image in ("logged-bad", f"/archive/{PATIENT}", f"{PATIENT}_t1"):
        assert server.infer(image).status_code in (404, 422)
    server.ask("GET", f"/{PATIENT}/x")
    server.ask("GET", f"/datastore/image?image={PATIENT}")
    server.ask("PUT", f"/datastore/image?image={PATIENT}", files={"file": (f"{PATIENT}.nii", b"hello")})
    log = server.log()
    assert "logged: t1ce by apt_brats" in log
    assert "GET /datastore " in log  # uvicorn's lines are there, without what was asked for
    assert PATIENT not in log


def test_the_temporary_folder_is_the_servers_own_and_empty(server: Server) -> None:
    (own,) = (server.folder / "app").glob("temporary-*")
    assert own.stat().st_mode & 0o077 == 0
    assert [path.name for path in own.rglob("*")] == ["worker"]
    assert not [path for path in (server.folder / "temporary").rglob("*") if "nii" in path.name]
