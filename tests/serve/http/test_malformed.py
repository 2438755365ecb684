"""Bodies that no client should send are refused, and the server has no error of its own."""

import base64
import io
import logging
import struct
import zlib
from collections.abc import Callable, Iterator

import httpx
import pytest
from PIL import Image

from .conftest import Running


@pytest.fixture(autouse=True)
def no_bugs(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing is logged as an error."""
    yield
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize("path", ["/v1/requests", "/v1/images/generations"])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b"\xff\xfe",
        b'{"prompt": "\xff"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"prompt": ' + b"[" * 500 + b"]" * 500 + b"}",
        b'{"prompt": "a", "guidance_scale": NaN}',
        b'{"prompt": "a", "guidance_scale": Infinity}',
        b'{"prompt": "a", "guidance_scale": 1e999}',
        b'{"prompt": "a", "eta": -Infinity}',
        b'{"prompt": "a", "strength": NaN, "image": "aaaa"}',
        b'{"prompt": "a", "seed": 1' + b"0" * 100 + b"}",
        b'{"prompt": "a", "seed": 1' + b"0" * 10_000 + b"}",
        b'{"prompt": "a", "num_inference_steps": 1' + b"0" * 100 + b"}",
        b'{"prompt": "a", "width": 1000000000, "height": 1000000000}',
        b'{"prompt": "a", "width": 1000000000}',
        b'{"prompt": "a", "n": 1000000000, "num_images_per_prompt": 1000000000}',
        b'{"prompt": "a", "scheduler_settings": {"num_train_timesteps": 1000000000}}',
        b'{"prompt": "a", "scheduler_settings": {"beta_start": NaN}}',
        b'{"prompt": "a", "stages": {"base": {"image": "/etc/passwd"}}}',
        b'{"prompt": "a", "stages": {"base": {"num_inference_steps": 1000}}}',
        b'{"prompt": "a", "controls": {"canny": {"image": "/etc/passwd"}}}',
        b'{"prompt": "a", "negative_prompt": "' + b"a" * 10_001 + b'"}',
        b'{"prompt": "\\ud800"}',
        b'{"\\ud800": 1}',
        b'{"prompt": "a", "scheduler": "\\ud800"}',
        b'{"prompt": "a", "model": "\\ud800"}',
        b'{"prompt": "a", "timeout": NaN, "size": "1x"}',
    ],
    ids=range(30),
)
def test_bodies_of_json(client: httpx.Client, path: str, body: bytes) -> None:
    answer = client.post(path, content=body, headers=JSON)
    assert answer.status_code in (400, 422)
    assert answer.json()["error"]["message"]


def form(*parts: bytes) -> bytes:
    return b"".join(b"--b\r\n" + part + b"\r\n" for part in parts) + b"--b--\r\n"


def field(name: bytes, value: bytes, more: bytes = b"") -> bytes:
    return b'Content-Disposition: form-data; name="' + name + b'"' + more + b"\r\n\r\n" + value


def picture(side: int = 16) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (side, side)).save(stream, "PNG")
    return stream.getvalue()


FILE = b'; filename="a.png"'
MULTIPART = "multipart/form-data; boundary=b"


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", MULTIPART),
        (b"nonsense", MULTIPART),
        (form(field(b"prompt", b"a"))[:-8], MULTIPART),
        (form(field(b"prompt", b"a")), "multipart/form-data"),
        (form(field(b"prompt", b"a")), "multipart/form-data; boundary="),
        (form(field(b"prompt", b"a")), "multipart/form-data; boundary=" + "c" * 2000),
        (form(b"no header"), MULTIPART),
        (form(b"Content-Disposition: form-data\r\n\r\nx"), MULTIPART),
        (form(*[field(b"prompt", b"a")] * 5000), MULTIPART),
        (form(*[field(b"image", b"a", FILE)] * 5000), MULTIPART),
        (form(field(b"prompt", b"a"), field(b"image", b"not a file")), MULTIPART),
        (form(field(b"prompt", b"a"), field(b"image", b"", FILE)), MULTIPART),
        (form(field(b"prompt", b"a"), field(b"image", b"no image", FILE)), MULTIPART),
        (form(field(b"prompt", b"a"), field(b"image", picture()[:-40], FILE)), MULTIPART),
        (form(field(b"prompt", b"a" * (2 << 20)), field(b"image", picture(), FILE)), MULTIPART),
        (form(field(b"prompt", b"a"), field(b"n", b"9" * 5000), field(b"image", picture(), FILE)), MULTIPART),
        (form(field(b"prompt", b"a"), field(b"strength", b"nan"), field(b"image", picture(), FILE)), MULTIPART),
        (form(field(b"prompt", b"a"), field(b"size", "²x²".encode()), field(b"image", picture(), FILE)), MULTIPART),
        (form(field(b"prompt", b"a"), field(b"size", "1²x16".encode()), field(b"image", picture(), FILE)), MULTIPART),
        (picture(), "image/png"),
    ],
    ids=range(20),
)
def test_forms(client: httpx.Client, body: bytes, kind: str) -> None:
    answer = client.post("/v1/images/edits", content=body, headers={"Content-Type": kind})
    assert answer.status_code in (400, 422)
    assert answer.json()["error"]["message"]


def bomb(side: int) -> bytes:
    """Return a PNG of zeros, one bit a pixel, that is a thousandth as large as its pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer, row = zlib.compressobj(9), bytes(1 + side // 8)
    rows = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("side", "status"), [(8192, 413), (30_000, 422)])  # Pillow itself refuses the latter
def test_images_of_too_many_pixels_are_not_decoded(client: httpx.Client, side: int, status: int) -> None:
    file = bomb(side)
    text = base64.b64encode(file).decode()
    for field_ in ("image", "mask_image"):
        answer = client.post("/v1/requests", json={"prompt": "a", "image": text, field_: text})
        assert answer.status_code == status
        assert "pixels" in answer.text
    answer = client.post("/v1/images/edits", data={"prompt": "a"}, files={"image": file})
    assert answer.status_code == status


@pytest.mark.parametrize(
    "path",
    ["/v1/requests/../../etc/passwd", "/v1/models/..%2f..%2fetc%2fpasswd", "/v1/requests/%00", "/v1/requests/%ff",
     "/v1/requests/a/images/-1", "/v1/requests/a/images/" + "9" * 5000, "/v1/requests/a/images/x"],
)  # fmt: skip
def test_paths(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code in (404, 422)


def test_images_are_held_up_to_a_size_in_all(own_server: Callable[..., Running]) -> None:
    """Those of requests that wait or run; the bytes are free again when a request has ended."""
    server = own_server()
    text, size = base64.b64encode(picture(64)).decode(), 64 * 64 * 3
    most = server.server.limits.held
    assert server.server.images.take("", most - size)  # of others
    with server.client() as client:
        body = {"prompt": "a", "image": text, "num_inference_steps": 2}
        twice = client.post("/v1/requests", json={**body, "mask_image": text})
        assert (twice.status_code, twice.headers["Retry-After"]) == (429, "1")
        accepted = client.post("/v1/requests", json=body)
        assert accepted.status_code == 202
        server.service_job(accepted.json()["id"]).result(60)
    assert server.server.images.held == most - size
