"""Requests with LoRAs: each is drawn with its own, whatever else runs, and few sets of them at a time."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from ldmrt.runtime import InvalidRequest, LdmrtError, Request
from ldmrt.runtime.pipeline.loras.loaded import KEPT, Active
from ldmrt.runtime.pipeline.pipeline import Pipeline
from ldmrt.serve.batching.dispatcher import Batch
from ldmrt.serve.batching.lanes import Lane
from ldmrt.serve.jobs.job import Cancelled, Job
from ldmrt.serve.jobs.queue import Queue
from ldmrt.serve.jobs.service import Service
from ldmrt.serve.models.loras import check_used, lora_files, open_with_loras
from ldmrt.serve.models.models import Models, fixed

from ...support.fakes.small_loras import small_lora
from ..conftest import held, request, until

OIL: Active = (("oil", 0.8),)
SETS: list[dict[str, float]] = [{}, {"oil": 0.8}, {"ink": 0.5}, {"oil": 0.8}, {"oil": 0.8, "ink": -0.5}, {}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two LoRAs, one of them in a folder below it."""
    made = tmp_path_factory.mktemp("loras")
    (made / "dark").mkdir()
    small_lora(made / "oil.safetensors", 1)
    small_lora(made / "dark" / "ink.safetensors", 2)
    return made


@pytest.fixture(scope="module")
def pipeline(bundle: Path, folder: Path) -> Iterator[Pipeline]:
    with open_with_loras(str(bundle), files=lora_files([str(folder)]), any_fits=False, check=False) as opened:
        yield opened


def test_each_request_is_drawn_with_its_own(pipeline: Pipeline) -> None:
    """The same bytes as alone, by calls that only requests with the same LoRAs share."""
    noted = list[Batch]()

    class Noting(Service):
        def _note(self, batch: Batch) -> None:
            noted.append(batch)

    asked = [request(7, loras=loras, num_inference_steps=12) for loras in SETS]
    alone = [pipeline.generate(one).pixels for one in asked]
    assert len({image.tobytes() for image in alone}) == len({str(loras) for loras in SETS})
    service = Noting(fixed({"tiny": pipeline}, {"tiny": 8}))
    jobs = [service.submit(one) for one in asked]
    drawn = [job.result(60).pixels for job in jobs]
    service.close()
    np.testing.assert_array_equal(np.stack(drawn), np.stack(alone))
    assert {batch.lane.loras for batch in noted} == {tuple(sorted(loras.items())) for loras in SETS}
    assert max(batch.calls for batch in noted if batch.lane.loras == OIL) == 2


def test_a_tag_in_the_prompt_is_drawn_as_the_field(service: Service) -> None:
    tagged = Request("a red apple <lora:oil:0.8>", prompt_syntax="a1111", num_inference_steps=2)
    plain = Request("a red apple ", prompt_syntax="a1111", num_inference_steps=2, loras={"oil": 0.8})
    first, second = service.submit(tagged), service.submit(plain)
    np.testing.assert_array_equal(first.result(60).pixels, second.result(60).pixels)
    assert first.lane.loras == second.lane.loras == OIL


def test_what_is_cancelled_leaves_nothing_behind(service: Service, pipeline: Pipeline) -> None:
    job, holding = held(service, loras={"oil": 2.0})
    service.cancel(job)
    holding.let_go()
    with pytest.raises(Cancelled):
        job.result(60)
    after = service.submit(request(3, num_inference_steps=2)).result(60)
    np.testing.assert_array_equal(after.pixels, pipeline.generate(request(3, num_inference_steps=2)).pixels)


@pytest.mark.parametrize("name", ["oli", "nonsense"])
def test_an_unknown_name_is_refused_at_once(service: Service, name: str) -> None:
    with pytest.raises(InvalidRequest, match=f"no LoRA '{name}' is loaded.*expected ink, oil"):
        service.submit(request(loras={name: 1.0}))


def job(model: str, loras: Active, accepted: float, size: int = 8) -> Job:
    return Job(Lane(model, (size, size), 4, loras), Request("a"), calls=1, rows=2, model=model, accepted=accepted)


def test_few_sets_are_drawn_at_a_time() -> None:
    """Not more than a pipeline keeps; one that waits comes before what was asked for after it."""
    queue = Queue()
    sets: list[Active] = [((name, 1.0),) for name in "abc"]
    first = [job("m", sets[number], number) for number in range(KEPT)]
    third = job("m", sets[KEPT], 10)
    later, other, plain = job("m", sets[0], 11, size=16), job("n", sets[0], 12), job("m", (), 13)
    for one in (*first, third, later, other, plain):
        queue.add(one)

    def begun() -> list[Job]:
        return queue.admit(32, lambda model: True)

    assert begun() == [*first, other, plain]
    queue.running.remove(first[1])
    assert begun() == [third, later]


def test_files_have_names(folder: Path, tmp_path: Path) -> None:
    oil, ink = folder / "oil.safetensors", folder / "dark" / "ink.safetensors"
    assert lora_files([str(folder)]) == {"ink": ink, "oil": oil}
    assert lora_files([str(oil), f"dark={ink}"]) == {"oil": oil, "dark": ink}
    with pytest.raises(LdmrtError, match=r"(?s)two LoRAs have one name.*--lora NAME="):
        lora_files([str(folder), str(oil)])
    with pytest.raises(LdmrtError, match="holds no LoRA"):
        lora_files([str(tmp_path)])


def test_of_several_models_one_has_to_take_a_file(bundle: Path, folder: Path, tmp_path: Path) -> None:
    def opened(files: dict[str, Path], **how: Any) -> Pipeline:
        return open_with_loras(str(bundle), files=files, check=False, **how)

    other = tmp_path / "other.safetensors"
    files = {"oil": folder / "oil.safetensors", "other": other}
    other.write_bytes(b"no LoRA")
    for any_fits in (True, False):  # what cannot be read fits no model
        with pytest.raises(LdmrtError, match=r"other\.safetensors"):
            opened(files, any_fits=any_fits)
    layers = {f"unet.gone.lora_{part}.weight": np.ones((4, 4), np.float32) for part in "AB"}
    save_file(layers, other)
    with pytest.raises(LdmrtError, match="match no module"):
        opened(files, any_fits=False)
    with opened(files, any_fits=True) as one:
        assert one.loras.names == ("oil",)
        check_used(["oil"], {"one": one})
        with pytest.raises(LdmrtError, match="no model takes other"):
            check_used(files, {"one": one})


def test_the_weights_of_sessions_count(pipeline: Pipeline) -> None:
    """Models share a budget of memory: a session of each network with replaced weights, and the sets that are kept."""
    models = Models()
    models.put("tiny", pipeline, 8)
    assert models.model("tiny").weights == (2 + KEPT) * pipeline.weights


def test_after_a_reload_the_files_are_those_that_are_there(bundle: Path, tmp_path: Path) -> None:
    file = small_lora(tmp_path / "oil.safetensors", 1)
    models = fixed(
        {"tiny": open_with_loras(str(bundle), files={"oil": file}, any_fits=False, check=False)}, {"tiny": 8}
    )
    service = Service(models)
    before = service.submit(request(loras={"oil": 1.0}, num_inference_steps=2)).result(60)
    small_lora(file, 2)
    service.replace_model("tiny", open_with_loras(str(bundle), files={"oil": file}, any_fits=False, check=False))
    after = service.submit(request(loras={"oil": 1.0}, num_inference_steps=2)).result(60)
    until(lambda: not service.running)
    service.close()
    models.close()
    assert (before.pixels != after.pixels).any()
