"""A replica streams what there is to tell of a request, and gives it up where nobody reads on."""

import asyncio
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ray")

from ldmrt.runtime import LdmrtError, Request
from ldmrt.runtime.pipeline.call import Result
from ldmrt.serve.ray.messages import Ended, Message, Row, owned
from ldmrt.serve.ray.replica import Loaded, Replica


class Alone(Replica):
    """A replica without Ray, which keeps its one model."""

    model: Loaded | None = None

    async def loaded(self, name: str) -> Loaded:
        self.model = self.model or await super().loaded(name)
        return self.model


@pytest.fixture
def replica(bundle: Path) -> Iterator[Alone]:
    made = Alone({"tiny": str(bundle), "gone": "/nowhere"}, 8, {"threads": 1})
    yield made
    if made.model is not None:
        made.model.close()


def read(replica: Replica, request: Request, name: str = "tiny") -> list[Message]:
    async def messages() -> list[Message]:
        return [pickle.loads(pickle.dumps(message)) async for message in replica.draw(name, request)]

    return asyncio.run(messages())


def test_messages_of_a_request(replica: Alone) -> None:
    begun, *rows, ended = read(replica, Request("a pear", num_inference_steps=3))
    assert type(begun) is Message
    assert [(row.row, row.rows, row.stage) for row in rows if isinstance(row, Row)] == [
        (0, 3, "base"), (1, 3, "base"), (2, 3, "base")
    ]  # fmt: skip
    assert isinstance(ended, Ended)
    assert isinstance(ended.outcome, Result)
    assert replica.model is not None
    pipeline = replica.model.pipeline
    right = pipeline.generate(Request("a pear", num_inference_steps=3))
    np.testing.assert_array_equal(ended.outcome.pixels, right.pixels)
    for row, state in zip(rows, pipeline.steps(Request("a pear", num_inference_steps=3)), strict=True):
        assert isinstance(row, Row)
        np.testing.assert_array_equal(row.state.x0, state.x0)
        assert row.encoding is not None
        assert 0 < row.encoding < 60  # since it began, on whatever machine
    batches = [batch for message in (begun, *rows, ended) for batch in message.batches]
    assert sum(batch.rows for batch in batches) == 3 * 2, "each of its calls once, with and without the prompt"


def test_a_request_that_nobody_reads_is_given_up(replica: Alone) -> None:
    async def hang_up() -> None:
        messages = replica.draw("tiny", Request("a pear", num_inference_steps=500))
        async for message in messages:
            if isinstance(message, Row):
                break
        await messages.aclose()  # type: ignore[attr-defined]

    asyncio.run(hang_up())
    assert replica.model is not None
    replica.model.close()  # waits for what runs, however long
    rows = sum(batch.rows for batch in replica._measured.taken())
    assert rows < 500


@pytest.mark.parametrize(("name", "scheduler"), [("gone", "ddim"), ("tiny", "nonsense")])
def test_errors_are_messages(replica: Alone, name: str, scheduler: str) -> None:
    """Of the bundle and of the request: they are the last one."""
    (ended,) = read(replica, Request("a pear", scheduler=scheduler), name)
    assert isinstance(ended, Ended)
    assert isinstance(ended.outcome, LdmrtError)


def test_other_libraries_errors_are_sent_by_their_words() -> None:
    class Unknown(Exception):
        """No other process has it."""

    outcome = pickle.loads(pickle.dumps(Ended.by(Unknown("a word")))).outcome
    assert str(outcome) == "a replica: Unknown: a word"
    assert type(outcome) is RuntimeError


def test_an_owned_result_shares_no_memory(replica: Alone) -> None:
    """Latents that were asked for are the array too."""
    for output in ("pil", "latent"):
        (*_, ended) = read(replica, Request("a pear", num_inference_steps=1, output_type=output))
        assert isinstance(ended, Ended)
        result = ended.outcome
        assert isinstance(result, Result)
        copy = owned(result)
        assert not np.shares_memory(copy.array, result.array)
        assert not np.shares_memory(copy.latents, result.latents)
        assert (copy.array is copy.latents) == (result.array is result.latents) == (output == "latent")
        np.testing.assert_array_equal(copy.array, result.array)
