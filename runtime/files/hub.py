"""Files of models on the Hugging Face hub, fetched into the hub's own cache."""

import re
from collections.abc import Sequence
from pathlib import Path

from ldmrt.runtime.errors import LdmrtError, first_line
from ldmrt.runtime.optional import unavailable

NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)  # "owner/name"; the hub has no other alphabet


def is_hub_name(text: str) -> bool:
    """Tell whether a text has the form of a model's name on the hub, "owner/name".

    A relative path of two parts has that form too, so a path that exists comes first.
    """
    return NAME.fullmatch(text) is not None and not re.search(r"--|\.\.|\.git$", text)


def fetch(where: str, name: str, files: Sequence[str], revision: str | None = None) -> Path:
    """Fetch files of a model into the hub's cache, or find them there without a network.

    Args:
        where: What an error concerns, such as "bundle".
        name: The model, "owner/name".
        files: The files as glob patterns, in which `*` matches `/` too. A pattern that matches nothing is no error.
        revision: A branch, a tag or a commit; the main branch if None.

    Returns:
        The folder of the model's snapshot in the cache. It may hold other files, and lack some of these.

    Raises:
        LdmrtError: The hub has no such model or revision, access to it is restricted, or the hub cannot be reached and
            the cache has no snapshot. Or huggingface_hub is not installed.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
    except ImportError as error:
        raise unavailable(error, f"{where}: no folder {name}") from None

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except GatedRepoError:  # a kind of RepositoryNotFoundError
        problem = f"no folder {name}, and access to the model on the hub is restricted"
        hint = f"accept its terms on https://huggingface.co/{name}, then hf auth login"
        raise LdmrtError(where, problem, hint=hint) from None
    except RepositoryNotFoundError:
        problem = f"no folder {name}, and no such model on the hub"
        raise LdmrtError(where, problem, hint="hf auth login, where the model is private") from None
    except RevisionNotFoundError:
        problem, expected = f"{name} on the hub has no revision {revision}", "a branch, a tag or a commit"
        raise LdmrtError(
            where, problem, expected=expected, hint=f"see https://huggingface.co/{name}/tree/main"
        ) from None
    except Exception as error:  # of the network, in many classes
        problem = f"no folder {name}, and the hub could not be reached"
        hint = "run again with a network, or name a folder that exists"
        raise LdmrtError(where, problem, found=first_line(error.__cause__ or error), hint=hint) from None
