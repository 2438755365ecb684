"""Where the members of a tar archive are, beside Python's tarfile."""

import io
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest

from ldmrt.model.training.data.sources.tar import members, read_member
from ldmrt.runtime import LdmrtError

from .....support.image_files import archive

NAMES = ("a.txt", "folder/b.txt", "long/" * 40 + "c.txt", "caf\u00e9/\U0001f600.txt", "x" * 100, "p/" * 60 + "y" * 90)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_of_tarfile(form: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(form)
    contents = {name: rng.bytes(int(rng.integers(0, 2000))) for name in NAMES}
    path = archive(tmp_path / "a.tar", contents, form)
    with tarfile.open(path) as tar:
        expected = [(info.name, info.offset_data, info.size) for info in tar]
        found = list(members(path))
        assert [(member.name, member.offset, member.size) for member in found] == expected
        for member in found:
            file = tar.extractfile(member.name)
            assert file is not None
            assert read_member(path, member) == file.read() == contents[member.name]


def test_folders_links_and_devices(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, b"Z"):
            info = tarfile.TarInfo(f"member {kind!r}")
            info.type, info.linkname = kind, "target"
            tar.addfile(info)
        tar.addfile(tarfile.TarInfo("empty"))
    found = [(member.kind, member.size) for member in members(tmp_path / "a.tar")]
    kinds = ["a link", "a link", "a device", "a FIFO", "no plain file", None]
    assert found == [(kind, 0) for kind in kinds]


@pytest.mark.parametrize("form", ["gnu", "posix"])
def test_sparse_files_of_gnu_tar(form: str, tmp_path: Path) -> None:
    """Their maps may take several blocks; the member that follows is still found."""
    with (tmp_path / "sparse.png").open("wb") as file:
        for place in range(40):
            file.seek(place << 17)
            file.write(b"data")
    (tmp_path / "z.txt").write_text("after")
    try:
        words = ["-C", tmp_path, f"--format={form}", "-S", "-cf", tmp_path / "a.tar", "sparse.png", "z.txt"]
        subprocess.run(["tar", *words], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no GNU tar")
    sparse, after = members(tmp_path / "a.tar")
    if sparse.kind is None:
        pytest.skip("a file system without holes")
    assert (sparse.name, sparse.kind) == ("sparse.png", "a sparse file")
    assert (after.name, read_member(tmp_path / "a.tar", after)) == ("z.txt", b"after")


def test_a_large_size_in_256_values_a_byte(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a.txt")
    info.size = 1 << 34
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(LdmrtError, match=r"a\.tar is truncated; found an end at a\.txt"):
        list(members(tmp_path / "a.tar"))


def test_an_archive_that_is_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = archive(tmp_path / "a.tar", {"a.txt": b"1" * 700, "b.txt": "2"}).read_bytes()
    ends = 512 * (1 + 2 + 1 + 1)  # of the last member's content
    for length in [1, 511, 512, 600, 1024, 1535, 1536, 1537, 2048, 2049, ends - 1, ends]:
        (tmp_path / "cut.tar").write_bytes(whole[:length])
        with pytest.raises(LdmrtError, match=r"cut\.tar is truncated"):
            list(members(tmp_path / "cut.tar"))
    (tmp_path / "cut.tar").write_bytes(whole[: ends + 1024])
    assert len(list(members(tmp_path / "cut.tar"))) == 2


def test_random_damage_is_one_error_or_members(tmp_path: Path) -> None:
    whole, rng = archive(tmp_path / "a.tar", {f"{'n' * 99}/{i}.txt": "1" * 600 for i in range(3)}).read_bytes(), 0
    refused = 0
    for turn in range(300):
        rng = np.random.default_rng(turn)
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), 6):
            damaged[place] = rng.integers(256)
        (tmp_path / "b.tar").write_bytes(damaged)
        try:
            list(members(tmp_path / "b.tar"))
        except LdmrtError as error:
            assert "b.tar" in str(error)  # noqa: PT017
            refused += 1
    assert refused > 100


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no tar" * 200, "is no tar archive; found no header at its beginning"),
        (b"\x1f\x8b" + bytes(600), "is compressed: .*; expected a .tar file"),
        (b"", "is truncated; found an end at the first member"),
    ],
)
def test_what_is_no_archive_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(LdmrtError, match=message):
        list(members(tmp_path / "a.tar"))


def test_archives_joined_to_one_are_refused(tmp_path: Path) -> None:
    """Python's tarfile ends at the first one's end, and says nothing."""
    one = archive(tmp_path / "a.tar", {"a.txt": "1"}).read_bytes()
    (tmp_path / "both.tar").write_bytes(one + one)
    assert len(tarfile.open(fileobj=io.BytesIO(one + one)).getnames()) == 1  # noqa: SIM115
    with pytest.raises(LdmrtError, match=r"both\.tar goes on after its end"):
        list(members(tmp_path / "both.tar"))


def test_sums_of_bytes_with_a_sign_and_other_spellings_are_read(tmp_path: Path) -> None:
    """Tarfile reads them too."""
    whole = bytearray(archive(tmp_path / "a.tar", {"\u00e9.txt": "1"}, tarfile.GNU_FORMAT).read_bytes())
    unsigned = 256 + sum(whole[:148]) + sum(whole[156:512])
    for stored in (
        b"%06o\0 " % unsigned,
        b"%6o \0" % unsigned,
        b"%07o\0" % unsigned,
        b"%06o\0 " % (unsigned - 2 * 256),
    ):
        whole[148:156] = stored
        (tmp_path / "b.tar").write_bytes(whole)
        with tarfile.open(tmp_path / "b.tar") as tar:
            assert tar.getnames() == [member.name for member in members(tmp_path / "b.tar")] == ["\u00e9.txt"]
    whole[148:156] = b"%06o\0 " % (unsigned + 1)
    (tmp_path / "b.tar").write_bytes(whole)
    with pytest.raises(LdmrtError, match="is no tar archive"):
        list(members(tmp_path / "b.tar"))
