"""What the tests share: a tiny checkpoint with random weights and its bundle, made once."""

import fcntl
import hashlib
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

TINY_LENGTH = 16  # tokens
# Tests leave nothing in the user's folders.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="ldmrt-tests-")
# Several processes share the tests (pytest-xdist), and networks this small only lose by threads of their own.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Waiting for the disk takes longer than most tests, and nothing here has to outlive a power failure.
os.fsync = lambda handle: None  # type: ignore[assignment]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out files that name no slow test where only those are asked for: to import all takes half a minute."""
    if config.option.markexpr == "slow" and collection_path.match("test_*.py"):
        return "slow" not in collection_path.read_text(encoding="utf-8") or None
    return None


@pytest.hookimpl(trylast=True)  # after those that are not selected have been taken out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that no process is left alone with one of them at the end.

    Where time may end before the tests, those of less than a minute come in another order each day.
    """
    day = float(os.environ.get("LDMRT_TEST_UNTIL", "0")) // 86400
    minutes, tests = Counter[Path](), Counter[Path]()
    for item in items:
        slow = item.get_closest_marker("slow")
        minutes[item.path] += slow.kwargs.get("minutes", 0) if slow else 0
        tests[item.path] += 1

    def place(path: Path) -> tuple[float, int]:
        """Return what a file is sorted by."""
        drawn = day and 0 < minutes[path] < 1
        return (0, zlib.crc32(f"{day} {path}".encode())) if drawn else (-minutes[path], -tests[path])

    items.sort(key=lambda item: place(item.path))  # stable: files stay together


@pytest.hookimpl(tryfirst=True)  # before fixtures are made
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip the slow tests that would begin after LDMRT_TEST_UNTIL, in seconds of `date +%s`: CI has to end in time."""
    until = float(os.environ.get("LDMRT_TEST_UNTIL", "inf"))
    if item.get_closest_marker("slow") and time.time() > until:
        pytest.skip("no time was left for it")


def pytest_runtest_protocol() -> None:
    """Keep pytest's log handler off torch's trace logger: with a handler, torch describes each step of an export."""
    if "torch" in sys.modules:
        logging.getLogger("torch.__trace").propagate = True  # pytest adds its handler to loggers that do not propagate


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Give networks one thread where a test asks for no number: threads that spin between two calls take the cores
    from the other processes that share the tests.
    """
    from ldmrt.runtime.backends.openvino.engine import OpenVinoEngine
    from ldmrt.runtime.backends.ort.engine import OrtEngine

    def with_one(opened: Callable[..., None]) -> Callable[..., None]:
        def init(self: object, *arguments: Any, threads: int = 0, **options: Any) -> None:
            opened(self, *arguments, threads=threads or 1, **options)

        return init

    with pytest.MonkeyPatch.context() as patched:
        for engine in (OrtEngine, OpenVinoEngine):
            patched.setattr(engine, "__init__", with_one(engine.__init__))
        yield


def tiny_checkpoint() -> Any:
    """A whole model small enough to export in seconds: 16x16 pictures, 8x8 latents of 4 channels."""
    import torch

    from ldmrt.model import Autoencoder, AutoencoderConfig, Checkpoint, UNet, UNetConfig
    from ldmrt.model.checkpoint.checkpoint import text_encoder
    from ldmrt.model.training.tasks.tokenizer import train_tokenizer
    from ldmrt.runtime.tokenizer.tokenizer import Tokenizer

    torch.manual_seed(0)
    captions = ["a red apple, noto style, blue background", "a penguin on a yellow background", "two pears"] * 3
    files = train_tokenizer(captions, entries=600, length=TINY_LENGTH)
    tokenizer = Tokenizer(files)
    unet = UNetConfig(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=24,
        attention_head_dim=2,
    )
    vae = AutoencoderConfig(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=16,
    )
    text = {
        "vocab_size": tokenizer.size,
        "hidden_size": 24,
        "intermediate_size": 48,
        "projection_dim": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": TINY_LENGTH,
        "bos_token_id": tokenizer.start,
        "eos_token_id": tokenizer.end,
        "pad_token_id": tokenizer.pad,
    }
    scheduler = {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "prediction_type": "epsilon",
    }
    encoders, tokenizers = {"text_encoder": text_encoder(text)}, {"tokenizer": files}
    return Checkpoint(UNet(unet).eval(), Autoencoder(vae).eval(), encoders, tokenizers, scheduler)


def shared(factory: pytest.TempPathFactory, name: str) -> Path:
    """Where something lies that is made once for all processes that share the tests.

    LDMRT_TEST_SHARED names an empty folder at first, for several runs that share it too.
    """
    if place := os.environ.get("LDMRT_TEST_SHARED"):
        return Path(place) / name
    base = factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared" / name


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object], *, wait: bool = True) -> Path:
    """Make a folder once for all processes that share the tests (pytest-xdist).

    The others wait until it is there, or without `wait` they leave it to the one that makes it.
    """
    folder = shared(factory, name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return folder
        if not folder.exists():
            work = folder.with_suffix(".part")
            shutil.rmtree(work, ignore_errors=True)  # of one that failed
            make(work)
            work.rename(folder)
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny checkpoint. Do not write into it."""
    return made_once(tmp_path_factory, "checkpoint", lambda folder: tiny_checkpoint().save(folder))


def graphs_of(factory: pytest.TempPathFactory, component: Any, *, wait: bool = True) -> Path:
    """Export a component once for all tests; it is known by the hashes by which an export reuses one."""
    from ldmrt.export.components.fingerprint import fingerprint
    from ldmrt.export.graph.to_onnx import to_onnx

    made_of = [component.name, fingerprint(component)]
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
    return made_once(factory, f"graphs-{key[:16]}", lambda place: to_onnx(component, place), wait=wait)


@pytest.fixture(scope="session")
def export_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any, Path], Path]:
    """A `to_onnx` that exports a component once for all tests."""

    def copied(component: Any, folder: Path) -> Path:
        graphs = graphs_of(tmp_path_factory, component)
        return Path(shutil.copytree(graphs, folder, dirs_exist_ok=True)) / "model.onnx"

    return copied


@contextmanager
def sharing(export_once: Callable[[Any, Path], Path]) -> Iterator[None]:
    """Have bundles written with what another test has already exported, where that is the same."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("ldmrt.export.bundle_writer.to_onnx", export_once)
        yield


@pytest.fixture
def shared_exports(export_once: Callable[[Any, Path], Path]) -> Iterator[None]:
    """Share exports with other tests."""
    with sharing(export_once):
        yield


@pytest.fixture
def row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have low memory call networks on one row at a time, however small the images."""
    monkeypatch.setattr("ldmrt.runtime.backends.wrappers.few_rows.LATENTS", 1)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """The tiny checkpoint's bundle. Do not write into it: copy it first.

    LDMRT_TEST_BUNDLE names one that is already made, for the run that has no torch to make it with.
    """
    if made := os.environ.get("LDMRT_TEST_BUNDLE"):
        return Path(made)
    from ldmrt.export import bundle_writer
    from ldmrt.export.components.table import components
    from ldmrt.model import load

    checkpoint, export_once = (request.getfixturevalue(name) for name in ("checkpoint", "export_once"))
    if not shared(tmp_path_factory, "bundle").exists():
        for component in components(load(checkpoint)).values():
            graphs_of(tmp_path_factory, component, wait=False)  # processes that need the bundle now export a part each

    def export(folder: Path) -> None:
        with sharing(export_once):
            for _ in bundle_writer.export_bundle(load(checkpoint), folder):
                pass

    return made_once(tmp_path_factory, "bundle", export)


@pytest.fixture(scope="session")
def tiny_autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an AutoencoderTiny for the tiny checkpoint's latents, of another scale. Do not write into it."""

    def save(folder: Path) -> None:
        import diffusers
        import torch

        from .support.pipelines import randomise

        torch.manual_seed(5)
        levels = {"num_encoder_blocks": [1, 1], "num_decoder_blocks": [1, 1], "scaling_factor": 0.5}
        widths = {"encoder_block_out_channels": [8, 8], "decoder_block_out_channels": [12, 12]}
        randomise(diffusers.AutoencoderTiny(**levels, **widths)).save_pretrained(folder)

    return made_once(tmp_path_factory, "tiny-autoencoder", save)


@pytest.fixture(scope="session")
def preview_bundle(
    bundle: Path, checkpoint: Path, tiny_autoencoder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The tiny checkpoint's bundle with a preview decoder. Do not write into it."""
    from ldmrt.export.bundle_writer import export_bundle
    from ldmrt.model import load, with_preview_decoder

    def export(folder: Path) -> None:
        shutil.copytree(bundle, folder)
        for _ in export_bundle(with_preview_decoder(load(checkpoint), tiny_autoencoder), folder):
            pass

    return made_once(tmp_path_factory, "preview-bundle", export)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The system's Chromium. For a module: other tests may not run beside its event loop."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no Chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@pytest.fixture
def default_signals() -> Iterator[None]:
    """What signals do at first: a test run in the background, or under nohup, ignores some of them."""
    handlers = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
