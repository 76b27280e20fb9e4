"""The service over real HTTP: results equal those of deblur.restore, and invalid requests get a one-line error."""

import http.client
import io
import json
import re
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import skimage.data
import torch
from prometheus_client.parser import text_string_to_metric_families

from deblur.app.media import ACCEPTED
from deblur.inference.bulk import restore_file
from deblur.models.trained import load_model
from tests.datasets import picture
from tests.service import metrics_address

CPU = torch.device("cpu")
PHOTO = picture(0, 90, 120)


def encoded(pixels: np.ndarray | PIL.Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image = pixels if isinstance(pixels, PIL.Image.Image) else PIL.Image.fromarray(pixels)
    image.save(out, kind, **options)
    return out.getvalue()


def post(
    service: str, body: bytes, timeout_s: float = 60, path: str = "restore", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers in lower case and body of the answer."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(f"{service}/{path}", data=body, headers={"Content-Type": ""} | named)
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            return answer.status, {name.lower(): value for name, value in answer.headers.items()}, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, {name.lower(): value for name, value in error.headers.items()}, error.read()


def pixels_of(data: bytes) -> np.ndarray:
    return np.asarray(PIL.Image.open(io.BytesIO(data))).astype(int)


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return answer.read().decode()


# ---- restored pictures


@pytest.mark.parametrize("size", [(90, 120), (1, 1), (7, 333), (480, 1100)])
def test_result_equals_that_of_the_command(service: str, service_model: Path, size: tuple[int, int]) -> None:
    data = encoded(picture(1, *size))
    status, headers, body = post(service, data, Content_Type="image/png")
    expected = restore_file(load_model(str(service_model), CPU), data, "in.png", ".png", CPU)
    assert (status, headers["content-type"], headers["cache-control"]) == (200, "image/png", "no-store")
    assert np.abs(pixels_of(body) - pixels_of(expected)).max() <= 1
    assert np.abs(pixels_of(body) - pixels_of(data)).max() > 20 or size == (1, 1)


def test_results_of_concurrent_requests_equal_those_of_single_ones(service: str, service_model: Path) -> None:
    model = load_model(str(service_model), CPU)
    sent = [encoded(picture(seed, *size)) for seed, size in enumerate([(90, 120)] * 6 + [(64, 64)] * 6)]
    answers: dict[int, bytes] = {}

    def send(nth: int) -> None:
        answers[nth] = post(service, sent[nth])[2]

    threads = [threading.Thread(target=send, args=(nth,)) for nth in range(len(sent))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for nth, data in enumerate(sent):
        expected = pixels_of(restore_file(model, data, "in.png", ".png", CPU))
        assert np.abs(pixels_of(answers[nth]) - expected).max() <= 1


def test_photograph_is_upright_and_keeps_its_profile(service: str) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    data = encoded(PHOTO, "JPEG", exif=exif, icc_profile=b"a profile", quality=95)
    _, headers, body = post(service, data, Content_Type="image/jpeg")
    found = PIL.Image.open(io.BytesIO(body))
    assert headers["content-type"] == "image/jpeg"
    assert (found.size, found.info["icc_profile"]) == ((90, 120), b"a profile")
    assert found.getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("*/*", "JPEG"),
        ("image/png", "PNG"),
        ("image/avif, image/webp;q=0.9, image/jpeg;q=0.1", "WEBP"),
        ("text/html, image/*;q=0.5", "JPEG"),
    ],
)
def test_format_follows_the_accept_header(service: str, accept: str, kind: str) -> None:
    _, headers, body = post(service, encoded(PHOTO, "JPEG"), Accept=accept)
    assert PIL.Image.open(io.BytesIO(body)).format == kind
    assert headers["content-type"] == f"image/{kind.lower()}"


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_the_first_frame_of_an_animated_picture_is_restored_on_request(
    service: str, service_model: Path, kind: str
) -> None:
    first = encoded(np.array(PIL.Image.open(io.BytesIO(animated(kind))).convert("RGB")))
    expected = restore_file(load_model(str(service_model), CPU), first, "in.png", ".png", CPU)
    status, _, body = post(service, animated(kind), path="restore?first_frame=1", Accept="image/png")
    assert status == 200
    assert np.abs(pixels_of(body) - pixels_of(expected)).max() <= 1


# ---- invalid and unusual requests


def bomb() -> bytes:
    """A PNG of 10000x10000 pixels in a few hundred kilobytes."""
    header = struct.pack(">IIBBBBB", 10_000, 10_000, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(10_001 * 10_000), 9)
    chunks = ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    made = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(made)


def animated(kind: str) -> bytes:
    first, second = (PIL.Image.fromarray(picture(seed, 20, 30)) for seed in (1, 2))
    return encoded(first, kind, save_all=True, append_images=[second])


def text_bomb() -> bytes:
    """A PNG with a comment of 200 MB in a few hundred kilobytes."""
    comment = b"Comment\0\0" + zlib.compress(bytes(200_000_000), 9)
    chunk = struct.pack(">I", len(comment)) + b"zTXt" + comment + struct.pack(">I", zlib.crc32(b"zTXt" + comment))
    plain = encoded(PHOTO)
    return plain[:33] + chunk + plain[33:]


JPEG = encoded(PHOTO, "JPEG")
ALPHA = encoded(np.dstack([PHOTO, PHOTO[..., 0]]))
BAD: dict[str, tuple[Callable[[], bytes], dict[str, str], int, str]] = {
    "empty": (lambda: b"", {}, 400, "empty"),
    "no picture": (lambda: b"hello, world", {}, 400, "not a picture"),
    "zeros": (lambda: bytes(100_000), {}, 400, "not a picture"),
    "cut JPEG": (lambda: JPEG[: len(JPEG) // 2], {}, 400, "does not decode"),
    "cut header": (lambda: JPEG[:30], {}, 400, "not a picture|does not decode"),
    "cut PNG": (lambda: encoded(PHOTO)[:-2000], {}, 400, "does not decode"),
    "broken PNG": (lambda: encoded(PHOTO)[:200] + b"\0" * 50 + encoded(PHOTO)[250:], {}, 400, "does not decode"),
    "100 megapixels": (bomb, {}, 413, "10000x10000 is over the limit of 64000000 pixels"),
    "huge comment": (text_bomb, {}, 400, "not a picture|does not decode"),
    "animated WebP": (lambda: animated("WEBP"), {}, 422, "holds 2 pictures"),
    "animated PNG": (lambda: animated("PNG"), {}, 422, "holds 2 pictures"),
    "animated GIF": (lambda: animated("GIF"), {}, 422, "holds 2 pictures"),
    "PPM": (lambda: encoded(PHOTO, "PPM"), {}, 400, "not a picture"),
    "BMP": (lambda: encoded(PHOTO, "BMP"), {}, 415, "is a BMP"),
    "TIFF": (lambda: encoded(PHOTO, "TIFF"), {}, 415, "is a TIFF"),
    "a form": (lambda: JPEG, {"Content_Type": "multipart/form-data; boundary=x"}, 415, "multipart/form-data"),
    "text by its type": (lambda: JPEG, {"Content_Type": "text/plain"}, 415, "text/plain"),
    "too many bytes": (lambda: bytes(5_000_000), {}, 413, "5000000 bytes.* 4000000"),
    "only HTML accepted": (lambda: JPEG, {"Accept": "text/html"}, 406, "text/html"),
    "alpha as JPEG": (lambda: ALPHA, {"Accept": "image/jpeg"}, 406, "alpha channel"),
    "20000 pixels as WebP": (lambda: encoded(picture(0, 1, 20_000)), {"Accept": "image/webp"}, 406, "20000x1"),
}


@pytest.mark.parametrize("name", BAD)
def test_invalid_request_is_rejected_in_one_sentence(service: str, name: str) -> None:
    make, headers, status, words = BAD[name]
    found, answer_headers, body = post(service, make(), **headers)
    sentence = body.decode()
    assert found == status, sentence
    assert re.search(words, sentence)
    assert "\n" not in sentence
    assert "<_io" not in sentence
    assert answer_headers["content-type"] == "text/plain; charset=utf-8"
    assert re.fullmatch("[a-z-]+", answer_headers["error-code"])


GOOD: dict[str, tuple[Callable[[], bytes], dict[str, str], str]] = {
    "JPEG as image/jpg": (lambda: JPEG, {"Content_Type": "image/jpg"}, "RGB"),
    "JPEG as image/pjpeg": (lambda: JPEG, {"Content_Type": "image/pjpeg"}, "RGB"),
    "JPEG as bytes": (lambda: JPEG, {"Content_Type": "application/octet-stream"}, "RGB"),
    "CMYK JPEG": (lambda: encoded(PIL.Image.fromarray(PHOTO).convert("CMYK"), "JPEG"), {}, "RGB"),
    "16-bit PNG": (lambda: encoded(PHOTO[..., 0].astype(np.uint16) * 257), {}, "L"),
    "1-bit PNG": (lambda: encoded(PIL.Image.fromarray(PHOTO).convert("1")), {}, "L"),
    "palette": (lambda: encoded(PIL.Image.fromarray(PHOTO).quantize(16)), {}, "RGB"),
    "grey": (lambda: encoded(PHOTO[..., 0], "JPEG"), {}, "L"),
    "alpha": (lambda: ALPHA, {"Accept": "image/jpeg, image/png;q=0.1"}, "RGBA"),
    "1x1": (lambda: encoded(picture(0, 2, 1)[:1]), {}, "RGB"),
    "20000x1": (lambda: encoded(picture(0, 1, 20_000)), {}, "RGB"),
    "1x20000": (lambda: encoded(picture(0, 20_000, 1)), {}, "RGB"),
    "WebP": (lambda: encoded(PHOTO, "WEBP"), {}, "RGB"),
    "another type than it says": (lambda: JPEG, {"Content_Type": "image/png"}, "RGB"),
    "no type": (lambda: JPEG, {}, "RGB"),
    "bytes after its end": (lambda: JPEG + b"more", {}, "RGB"),
}


@pytest.mark.parametrize("name", GOOD)
def test_unusual_pictures_are_restored_at_their_size(service: str, name: str) -> None:
    make, headers, mode = GOOD[name]
    data = make()
    status, _, body = post(service, data, **headers)
    assert status == 200, body
    found = PIL.Image.open(io.BytesIO(body))
    assert (found.size, found.mode) == (PIL.Image.open(io.BytesIO(data)).size, mode)


def connection(service: str) -> socket.socket:
    host, port = service.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def answer_on(opened: socket.socket) -> tuple[int, str]:
    answer = http.client.HTTPResponse(opened)
    answer.begin()
    return answer.status, answer.read().decode()


def test_slow_upload_times_out(service: str) -> None:
    with connection(service) as opened:
        opened.sendall(b"POST /restore HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: 1000\r\n\r\n")
        opened.sendall(b"\xff\xd8")
        status, sentence = answer_on(opened)
    assert status == 408
    assert " 3 s" in sentence


def test_chunked_upload_is_limited(service: str) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(50):
            yield bytes(100_000)

    with connection(service) as opened:
        opened.sendall(b"POST /restore HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        for chunk in chunks():
            opened.sendall(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        opened.sendall(b"0\r\n\r\n")
        status, sentence = answer_on(opened)
    assert status == 413
    assert "more than 4000000 bytes" in sentence


def test_aborted_uploads_do_not_affect_others(service: str) -> None:
    for _ in range(5):
        with connection(service) as opened:
            opened.sendall(b"POST /restore HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + bytes(5000))
    assert post(service, JPEG)[0] == 200


def test_request_of_a_disconnected_client_is_cancelled(service: str) -> None:
    data = encoded(picture(0, 1500, 1500), "JPEG")
    before = metrics(service)["deblur_service_pixels_total"]
    with connection(service) as opened:
        opened.sendall(b"POST /restore HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
        time.sleep(0.3)
    until = time.monotonic() + 20
    while metrics(service)["deblur_service_running"]:
        assert time.monotonic() < until
        time.sleep(0.1)
    assert metrics(service)["deblur_service_pixels_total"] == before


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/restore", 405), ("POST", "/", 405), ("GET", "/x", 404)]
)
def test_other_paths_and_methods_are_rejected(service: str, method: str, path: str, status: int) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(urllib.request.Request(service + path, method=method), timeout=10)
    assert refused.value.code == status


# ---- for operators


def metrics(service: str) -> dict[str, float]:
    """The metrics of the replica, summed over labels."""
    found: dict[str, float] = defaultdict(float)  # a label that was not used yet is not exported
    for family in text_string_to_metric_families(get(metrics_address(service))):
        for sample in family.samples:
            found[sample.name] += sample.value
    return found


def test_health_and_limits(service: str) -> None:
    assert get(f"{service}/healthz") == get(f"{service}/readyz") == "ok"
    limits = json.loads(get(f"{service}/limits"))
    assert limits == {"bytes": 4_000_000, "pixels": 64_000_000, "types": list(ACCEPTED)}


def test_metrics_count_requests(service: str) -> None:
    before = metrics(service)
    assert post(service, encoded(PHOTO))[0] == 200
    assert post(service, b"nothing")[0] == 400
    after = metrics(service)
    assert after["deblur_service_requests_total"] - before["deblur_service_requests_total"] == 2
    assert after["deblur_service_pixels_total"] - before["deblur_service_pixels_total"] == 90 * 120
    assert after["deblur_service_pieces_total"] > before["deblur_service_pieces_total"]
    assert after["deblur_service_batches_total"] > before["deblur_service_batches_total"]
    assert after["deblur_service_seconds_total"] > before["deblur_service_seconds_total"]


def test_response_has_a_server_timing_header(service: str) -> None:
    _, headers, _ = post(service, encoded(skimage.data.astronaut()[:100, :100]))
    assert re.fullmatch(
        r"wait;dur=[\d.]+, decode;dur=[\d.]+, restore;dur=[\d.]+, encode;dur=[\d.]+", headers["server-timing"]
    )
