"""Call a network once for each number of tokens that its calls see, as one call sees the same number in all rows."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.bundle.stages import PROMPT
from ldmrt.runtime.tensors import Array, Arrays

Network = Callable[..., Arrays]
Split = Callable[[Network], Network]


def splitting(tokens: NDArray[np.int64] | None) -> Split:
    """Return what splits the calls of a network.

    So an image does not depend on how long the prompts of those beside it are.

    Args:
        tokens: How many tokens of the prompt each row of a call sees, (rows,); None where all see as many, and
            nothing is split.
    """
    if tokens is None:
        return lambda network: network

    def split(network: Network) -> Network:
        def run(**arrays: Array) -> Arrays:
            outputs: Arrays = {}
            for count in sorted({*tokens.tolist()}):
                mine = tokens == count
                own = {name: array[mine] for name, array in arrays.items()}
                own[PROMPT] = own[PROMPT][:, :count]
                for name, array in network(**own).items():
                    whole = outputs.setdefault(name, np.empty((len(tokens), *array.shape[1:]), array.dtype))
                    whole[mine] = array
            return outputs

        return run

    return split


WHOLE = splitting(None)
