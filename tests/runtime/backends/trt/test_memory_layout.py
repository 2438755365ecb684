"""Where tensors lie: each at a place of its own, on the boundaries that TensorRT wants."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ldmrt.runtime.backends.trt.memory_layout import ALIGNMENT, place_tensors

DTYPES = ("float32", "float16", "int64", "int32", "bool")
SHAPES = st.lists(st.integers(0, 9), max_size=4).map(tuple)


@given(st.lists(st.tuples(st.sampled_from(DTYPES), SHAPES), min_size=1, max_size=8))
def test_places(tensors: list[tuple[str, tuple[int, ...]]]) -> None:
    named = [(f"t{number}", dtype, shape) for number, (dtype, shape) in enumerate(tensors)]
    made = place_tensors(named)
    assert [(name, one.dtype, one.shape) for name, one in made.tensors.items()] == named
    for one in made.tensors.values():
        assert one.offset % ALIGNMENT == 0
        assert one.size == np.empty(one.shape, one.dtype).nbytes
        assert one.offset + one.size <= made.size
    for one, following in pairwise(made.tensors.values()):
        assert one.offset < following.offset  # also where it has no elements: addresses tell tensors apart
        assert one.offset + one.size <= following.offset
    assert made.size < sum(one.size for one in made.tensors.values()) + ALIGNMENT * len(tensors) + 1
    assert place_tensors(named) == made


@given(st.lists(st.tuples(st.sampled_from(DTYPES), SHAPES), min_size=1, max_size=5))
def test_views_do_not_touch_one_another(tensors: list[tuple[str, tuple[int, ...]]]) -> None:
    made = place_tensors((f"t{number}", *tensor) for number, tensor in enumerate(tensors))
    views = made.views(np.zeros(made.size, np.uint8))
    written = {
        name: np.full(view.shape, number + 1).astype(view.dtype) for number, (name, view) in enumerate(views.items())
    }
    for name, view in views.items():
        view[...] = written[name]
    for name, view in views.items():
        np.testing.assert_array_equal(view, written[name])
