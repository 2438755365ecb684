"""The manifest of a bundle: checks its schema, and the files beside it against those that it lists."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from ldmrt.runtime.errors import BundleError
from ldmrt.runtime.files.file_cache import HashCache
from ldmrt.runtime.files.reading import JsonObject, sha256

from .contents import AGAIN, Contents, is_inside, is_name
from .stages import BASE

MANIFEST = "ldmrt.json"
SCHEMA, CASCADE = 2, 3  # of a model, and of one that others come after
READ = (1, SCHEMA, CASCADE)  # schemas that can be read; the first has no stages
UPSCALE_MODEL = "upscale_model"  # the key of what an upscale model is, whose bundle has no stages
KEPT = ("engines", "optimized")  # folders that a bundle's manifest does not list
MOST_STAGES = 8  # of a cascade, after the first
MOST = 10_000  # files in a manifest; Stable Diffusion XL has 40
COMPONENTS = 100  # in a manifest, with the graphs beside them
PRECISIONS = ("fp32", "fp16", "bf16")
# The keys of each entry in the lists of merged files.
MERGED: Mapping[str, Mapping[str, type | tuple[type, ...]]] = {
    "loras": {"file": str, "weight": (int, float)},
    "embeddings": {"file": str, "token": str},
}
REFERENCE = re.compile(r"reference-([0-9a-f]{12})\.npz")  # digits of its SHA-256
HINT = "export again, or install the ldmrt that made it"


def check_manifest(manifest: JsonObject) -> None:
    """Refuse a manifest of another schema, or with values of other types.

    Raises:
        BundleError: States the entry that is damaged.
    """
    if (schema := manifest.get("schema")) not in READ or type(schema) is not int:
        problem, expected = f"{MANIFEST} has another schema", " or ".join(map(str, READ))
        raise BundleError("bundle", problem, expected=expected, found=f"{schema!r:.100}", hint=HINT)
    if schema >= SCHEMA and "stages" not in manifest:
        raise BundleError("bundle", f"{MANIFEST} has no stages", expected="a list", hint=HINT)
    for key in ("files", "components", "made_by"):
        if not isinstance(manifest.get(key), dict):
            raise BundleError("bundle", f"{MANIFEST} has no {key}", expected="a JSON object", hint=HINT)
    _check_listed(manifest["files"])
    _check_components(manifest["components"])
    if not all(isinstance(version, str) for version in manifest["made_by"].values()):
        raise _damaged("made_by", "versions as strings")
    for key, kinds in MERGED.items():
        if not _are_entries(manifest.get(key, []), kinds):
            raise _damaged(key, f"a list of objects with {' and '.join(kinds)}")
    _check_memory(manifest.get("memory", {}))
    _check_then(manifest)
    if (certificate := manifest.get("certificate")) is not None:
        _check_reference(certificate, manifest["files"])


def check_named(manifest: JsonObject, names: Iterable[str]) -> None:
    """Refuse a manifest that lacks a component which its stages need."""
    for name in names:
        if f"{name}/model.onnx" not in manifest["files"] or name not in manifest["components"]:
            raise BundleError("bundle", f"{MANIFEST} does not name {name}", hint=HINT)


def _damaged(where: str, expected: str) -> BundleError:
    """Make the error of an entry that is not as expected."""
    return BundleError("bundle", f"{MANIFEST} is damaged at {where}", expected=expected, hint=HINT)


def _check_then(manifest: JsonObject) -> None:
    """Refuse later stages that are not names of folders."""
    names = manifest.get("then", [])
    if ("then" in manifest) is not (manifest["schema"] == CASCADE):
        raise _damaged("then", f"the later stages of a manifest of schema {CASCADE}")
    named = isinstance(names, list) and len(names) <= MOST_STAGES and all(map(is_name, names))
    if not named or len({*map(str.casefold, names), BASE}) != len(names) + 1:
        raise _damaged("then", f"at most {MOST_STAGES} names of stages, all different")
    if taken := {*names} & folders_of(manifest):
        raise _damaged("then", f"other names than those of the bundle's own folders, such as {min(taken)}")


def folders_of(manifest: JsonObject) -> set[str]:
    """Name the folders of a bundle that are its own: those of its files, and of what is kept beside them."""
    return {name.partition("/")[0] for name in manifest["files"]} | set(manifest["components"]) | {*KEPT}


def _check_memory(memory: object) -> None:
    """Refuse a forecast of the U-Net's memory that is not numbers of bytes."""

    def is_count(value: object) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e12

    if not (isinstance(memory, dict) and all(map(is_count, memory.values()))):
        raise _damaged("memory", "numbers of bytes")


def _check_listed(files: JsonObject) -> None:
    """Refuse paths that lead out of the bundle, and files without size and SHA-256."""
    if len(files) > MOST:
        raise BundleError("bundle", f"{MANIFEST} lists too many files", expected=f"at most {MOST}", found=len(files))
    for name, entry in files.items():
        if not is_inside(name):
            raise BundleError(
                "bundle", f"{MANIFEST} names {name!r:.200}", expected="a path inside the bundle", hint=HINT
            )
        whole = isinstance(entry, dict) and entry.keys() == {"size", "sha256"}
        if not (whole and type(entry["size"]) is int and isinstance(entry["sha256"], str)):
            raise _damaged(name, "size and sha256")


def _check_components(components: JsonObject) -> None:
    """Refuse unsupported names, a name for two graphs, and values of other types than `Bundle` reads."""
    seen = set[str]()
    for name, row in components.items():
        if not isinstance(row, dict):
            raise _damaged(f"{name!r:.200}", "a JSON object")
        beside = row.get("graphs", {})
        if not isinstance(beside, dict) or len(components) + len(beside) > COMPONENTS:
            raise _damaged(f"the graphs of {name!r:.200}", f"a JSON object, with at most {COMPONENTS} graphs in all")
        if row.get("precision", "fp32") not in PRECISIONS:
            raise _damaged(f"the precision of {name!r:.200}", " or ".join(PRECISIONS))
        for graph, ends in ((name, row), *beside.items()):
            if not is_name(graph):
                problem = f"{MANIFEST} has the unsupported name {graph!r:.200}"
                raise BundleError("bundle", problem, expected="letters, digits, _, - and .", hint=HINT)
            if graph.casefold() in seen:
                raise _damaged(graph, "a name for each component and graph")
            seen.add(graph.casefold())
            for side in ("inputs", "outputs"):
                if not (isinstance(ends, dict) and _are_specs(ends.get(side))):
                    raise _damaged(f"the {side} of {graph}", "name, dtype and shape of each")


def _are_entries(value: object, kinds: Mapping[str, type | tuple[type, ...]]) -> bool:
    """Tell whether a value is a list of objects with these keys, and lists of strings as trigger words."""

    def is_entry(entry: object) -> bool:
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), kind) for key, kind in kinds.items()):
            return False
        words = entry.get("words", [])
        return isinstance(words, list) and all(isinstance(word, str) for word in words)

    return isinstance(value, list) and all(map(is_entry, value))


def _are_specs(value: object) -> bool:
    """Tell whether a value is a list of name, dtype and shape, the shape in numbers and symbols."""

    def is_size(dim: object) -> bool:
        return isinstance(dim, str) or (type(dim) is int and 0 <= dim < 2**31)

    return isinstance(value, list) and all(
        isinstance(spec, list)
        and len(spec) == 3
        and isinstance(spec[0], str)
        and isinstance(spec[1], str)
        and isinstance(spec[2], list)
        and all(map(is_size, spec[2]))
        for spec in value
    )


def _check_reference(certificate: object, files: JsonObject) -> None:
    """Refuse a certificate whose recording is not a listed file: only the SHA-256 of those is known."""
    if not isinstance(certificate, dict):
        raise _damaged("certificate", "a JSON object")
    name = certificate.get("reference")
    if not isinstance(name, str) or REFERENCE.fullmatch(name) is None or name not in files:
        problem, expected = f"the certificate names the reference {name!r:.200}", "a listed file, reference-*.npz"
        raise BundleError("bundle", problem, expected=expected, hint="export again")


def check_files(path: Path, files: JsonObject, hashes: HashCache | None = None) -> None:
    """Compare files with their recorded size and SHA-256.

    Args:
        path: The bundle's folder.
        files: The manifest's entry of each file.
        hashes: A cache, with which files that have not changed since the last comparison are not read again.

    Raises:
        BundleError: Names the first file that differs.
    """
    contents = Contents(path, files)
    for name, entry in files.items():
        file = contents.file(name)
        if (size := file.stat().st_size) != entry["size"]:
            expected = f"{entry['size']} bytes"
            raise BundleError("bundle", f"{name} was cut off or changed", expected=expected, found=size, hint=AGAIN)
        digest = sha256(file) if hashes is None else hashes.sha256(name, file)
        if digest != entry["sha256"]:
            expected = f"sha256 {entry['sha256']:.64}"
            raise BundleError("bundle", f"{name} was changed", expected=expected, found=digest, hint=AGAIN)
    if hashes is not None:
        hashes.keep()
