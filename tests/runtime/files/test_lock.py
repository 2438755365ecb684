"""One command at a time changes a bundle, and of a process that was killed nothing stays in the way."""

import contextlib
import errno
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from ldmrt.runtime import LdmrtError
from ldmrt.runtime.files import lock, swap, writing
from ldmrt.runtime.files.lock import bundle_lock
from ldmrt.runtime.files.owners import Owner
from ldmrt.runtime.files.writing import remove_abandoned, temporary_folder, temporary_name, write_atomically

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


def child(work: Callable[[Callable[[], None]], None]) -> int:
    """A process that works until it calls what it is given, and then waits to be killed."""
    begun, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            work(lambda: (os.write(tell, b"x"), signal.pause())[1])
        finally:
            os._exit(1)
    os.close(tell)
    assert os.read(begun, 1) == b"x"
    os.close(begun)
    return pid


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def holds(bundle: Path) -> Callable[[Callable[[], None]], None]:
    def work(wait: Callable[[], None]) -> None:
        with bundle_lock(bundle):
            wait()

    return work


@pytest.fixture(params=["flock", "no flock"])
def locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With locks of the operating system, and as on a file system that has none."""
    if request.param == "no flock":
        import fcntl

        def refuse(*_: object) -> None:
            raise OSError(errno.ENOLCK, "no locks available")

        monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.usefixtures("locks")
def test_the_second_is_refused_until_the_first_is_dead(tmp_path: Path, exists: bool) -> None:
    bundle = tmp_path / "bundle"
    if exists:
        bundle.mkdir()
    pid = child(holds(bundle))
    for name in (bundle, tmp_path / "." / "bundle"):
        with (
            pytest.raises(LdmrtError, match=rf"is being changed by process {pid} on .*\n  try: wait"),
            bundle_lock(name),
        ):
            pass
    with bundle_lock(tmp_path / "another"):
        pass
    kill(pid)
    assert list(tmp_path.glob(".*"))  # what it left behind is taken over
    with bundle_lock(bundle):
        pass
    assert list(tmp_path.iterdir()) == ([bundle] if exists else [])


def test_another_hosts_lock_stays_where_the_system_has_none(
    tmp_path: Path, locks: None, request: pytest.FixtureRequest
) -> None:
    """A free lock of the system is free; without one, nobody knows whether the other process still runs."""
    place = tmp_path / f".bundle{lock.LOCK}"
    place.write_text("00000000-1-1\nprocess 1 on elsewhere\n")
    if "no flock" not in request.node.name:
        with bundle_lock(tmp_path / "bundle"):
            pass
        assert not place.exists()
        return
    with (
        pytest.raises(LdmrtError, match=rf"changed by process 1 on elsewhere\n  try: wait .*, or remove {place} if"),
        bundle_lock(tmp_path / "bundle"),
    ):
        pass
    assert place.exists()


def test_threads_of_one_process_too(tmp_path: Path) -> None:
    refused: list[str] = []

    def work() -> None:
        try:
            with bundle_lock(tmp_path / "bundle"):
                pass
        except LdmrtError as error:
            refused.append(str(error))

    with bundle_lock(tmp_path / "bundle"):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert f"process {os.getpid()}" in refused[0]


def test_beside_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    opened, refused = os.open, [tmp_path]

    def read_only(path: Path, *rest: int) -> int:
        if Path(path).parent in refused:
            raise OSError(errno.EROFS, "Read-only file system")
        return opened(path, *rest)

    monkeypatch.setattr(lock.os, "open", read_only)
    with bundle_lock(bundle):
        assert (bundle / lock.LOCK).exists()
        with pytest.raises(LdmrtError, match="is being changed"), bundle_lock(bundle):
            pass
    assert list(bundle.iterdir()) == []
    refused.append(bundle)
    with pytest.raises(LdmrtError, match=r"cannot write to .*; found Read-only"), bundle_lock(bundle):
        pass


@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_what_is_no_lock_file_is_not_written_to(tmp_path: Path, kind: str) -> None:
    place = tmp_path / f".bundle{lock.LOCK}"
    (tmp_path / "mine").write_text("mine")
    place.symlink_to(tmp_path / "mine") if kind == "link" else os.mkfifo(place)
    with pytest.raises((LdmrtError, OSError)), bundle_lock(tmp_path / "bundle"):
        pass
    assert (tmp_path / "mine").read_text() == "mine"


def half_a_file(folder: Path) -> Callable[[Callable[[], None]], None]:
    def work(wait: Callable[[], None]) -> None:
        with write_atomically(folder / "image.png") as file:
            file.write(b"half")
            wait()

    return work


def half_a_folder(folder: Path) -> Callable[[Callable[[], None]], None]:
    def work(wait: Callable[[], None]) -> None:
        with temporary_folder(folder / "bundle") as made:
            (made / "unet").mkdir()
            (made / "unet" / "model.onnx").write_bytes(b"half")
            wait()

    return work


@pytest.mark.parametrize("half", [half_a_file, half_a_folder])
def test_what_a_killed_process_leaves_is_removed_by_the_next(
    tmp_path: Path, half: Callable[[Path], Callable[[Callable[[], None]], None]]
) -> None:
    pid = child(half(tmp_path))
    (left,) = tmp_path.iterdir()
    remove_abandoned(tmp_path)
    assert left.exists(), "its owner is at it still"
    kill(pid)
    writing._remove_abandoned_once.cache_clear()
    with write_atomically(tmp_path / "other.png") as file:
        file.write(b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["other.png"]


def test_a_number_that_was_given_again_is_another_process(tmp_path: Path) -> None:
    now = Owner.current()
    assert not now.is_dead
    assert Owner(now.host, now.pid, now.start + 1).is_dead
    assert Owner.parse(str(now)) == now
    assert Owner.parse("another thing") is None


@pytest.mark.parametrize(("days", "stays"), [(0, True), (3, False)])
def test_of_another_host_what_is_old_goes(tmp_path: Path, days: int, stays: bool) -> None:
    name = temporary_name("bundle").replace(Owner.current().host, "00000000")
    (tmp_path / name).mkdir()
    (tmp_path / name / "weights").write_bytes(b"half")
    for path in (tmp_path / name / "weights", tmp_path / name):
        before = path.stat().st_mtime - days * 86400
        os.utime(path, (before, before))
    remove_abandoned(tmp_path)
    assert (tmp_path / name).exists() is stays


def test_what_is_not_ours_stays(tmp_path: Path) -> None:
    names = [".bundle.x7d9w2.tmp", "bundle.tmp", ".hidden", ".a.ldmrt-xyz.tmp"]
    for name in names:
        (tmp_path / name).write_text("mine")
    remove_abandoned(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


def test_a_link_under_a_temporary_name_is_removed_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    dead = Owner(Owner.current().host, 2**22 + 1, 1)
    (tmp_path / f".x.ldmrt-{dead}-01234567.tmp").symlink_to(tmp_path / "mine")
    remove_abandoned(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert (tmp_path / "mine" / "thesis.tex").exists()


def test_long_names_have_temporary_ones(tmp_path: Path) -> None:
    name = "é" * 120 + ".png"
    with write_atomically(tmp_path / name) as file:
        file.write(b"whole")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert len(os.fsencode(temporary_name(name))) < 200


def test_what_is_no_file_is_written_to_as_it_is(tmp_path: Path) -> None:
    """A pipe, or /dev/stdout, is not replaced by a file."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with write_atomically(pipe) as file:
        file.write(b"whole")
    assert os.read(reader, 100) == b"whole"
    os.close(reader)
    assert list(tmp_path.iterdir()) == [pipe]
    assert not pipe.is_file()


@pytest.mark.parametrize("name", ["ü" * 120, "木" * 80, "x" * 240])
def test_long_names_have_locks(tmp_path: Path, name: str) -> None:
    with bundle_lock(tmp_path / name):
        assert len(list(tmp_path.iterdir())) == 1


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is put on the disk and what is renamed, in this order."""
    done: list[str] = []
    fsync, replace, rename, exchange = os.fsync, os.replace, os.rename, swap._exchange

    def synced(handle: int) -> None:
        done.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name.partition(".ldmrt-")[0])
        fsync(handle)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("rename"), replace(*names)))
    monkeypatch.setattr(os, "rename", lambda *names: (done.append("rename"), rename(*names)))
    monkeypatch.setattr(swap, "_exchange", lambda *names: (done.append("rename"), exchange(*names))[1])
    return done


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="this system does not name open files")
def test_a_file_is_on_the_disk_before_its_name_is(tmp_path: Path, order: list[str]) -> None:
    with write_atomically(tmp_path / "a.png") as file:
        file.write(b"whole")
    assert order == [".a.png", "rename", tmp_path.name]


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="this system does not name open files")
@pytest.mark.parametrize("old", [True, False])
def test_a_folder_is_on_the_disk_before_its_name_is(tmp_path: Path, order: list[str], old: bool) -> None:
    (tmp_path / "new" / "unet").mkdir(parents=True)
    (tmp_path / "new" / "unet" / "model.onnx").write_bytes(b"graph")
    (tmp_path / "new" / "link").symlink_to("nowhere")
    os.mkfifo(tmp_path / "new" / "fifo")
    if old:
        (tmp_path / "bundle").mkdir()
    swap.replace_folder(tmp_path / "new", tmp_path / "bundle")
    assert sorted(order[:3]) == ["model.onnx", "new", "unet"]
    assert order[3:] == ["rename", tmp_path.name]


@pytest.mark.parametrize(("number", "told"), [(errno.EINVAL, False), (errno.EIO, True), (errno.ENOSPC, True)])
def test_a_file_that_did_not_reach_the_disk_is_not_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, told: bool
) -> None:
    """A network's file system may only then notice that it is full; some have no such call."""

    def fail(handle: int) -> None:
        raise OSError(number, os.strerror(number))

    (tmp_path / "a.png").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", fail)
    raised = pytest.raises(OSError, match=r"a\.png") if told else contextlib.nullcontext()
    with raised, write_atomically(tmp_path / "a.png") as file:
        file.write(b"new")
    assert (tmp_path / "a.png").read_bytes() == (b"old" if told else b"new")
    assert len(list(tmp_path.iterdir())) == 1
