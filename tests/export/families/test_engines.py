"""TensorRT-RTX builds engines of every transformer family, each of all its networks. None runs."""

import shutil
from pathlib import Path

import pytest

from ldmrt.export.engines import compiler
from ldmrt.export.engines.build import Built, build, decide
from ldmrt.export.engines.profiles import Wanted, recipes
from ldmrt.runtime import Bundle
from ldmrt.runtime.bundle.engines.store import EngineFile, engines

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'ldmrt[rtx]'")

pytestmark = [
    pytest.mark.slow(minutes=1),
    pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning"),  # of Polygraphy
]
RTX = "tensorrt-rtx"


@pytest.mark.parametrize("family", ["sd3", "flux", "pixart", "sana", "z_image"])
def test_every_network_has_an_engine(family: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(request.getfixturevalue(f"{family}_bundle"), tmp_path / "bundle"))
    bundle = Bundle.open(folder, check=False)
    size = bundle.stage.size
    wanted = Wanted.read(f"{size}x{size}", "1-2", "off", size)
    wished = recipes(bundle, wanted, backend=RTX, version=compiler.version(RTX), targets=["sm89"])
    built = [one for one in build(Bundle.open(folder), decide(folder, wished)) if isinstance(one, Built)]
    assert {one.recipe.component for one in built} == set(bundle.components)
    found = [one for one in engines(folder) if isinstance(one, EngineFile) and not one.damaged]
    assert len(found) == len(bundle.components)
    for one in found:
        assert one.measured["weights"] <= one.size
