"""Networks in repositories of the Hugging Face Hub: one file, `model.safetensors`, in each."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..files import reason, remedy
from ..networks import Precond
from .native import load_file, save

FILE = "model.safetensors"
MESSAGE = "Upload a network of autoguide_fast"

_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
# The name of a file, perhaps misspelt: it ends in letters, where a repository's has a version.
_FILE = re.compile(r".*\.[a-zA-Z]+2?")

_CARD = """\
---
library_name: autoguide_fast
---

A denoiser for `autoguide_fast`:

```python
import autoguide_fast

images = autoguide_fast.sample("{name}", seeds=range(16))
net = autoguide_fast.load("{name}")
```
"""


def is_repository(name: object) -> bool:
    """Whether `name` may be a repository, `"user/name"`, and huggingface_hub is there to ask.

    What is in a folder that exists, or ends like a file, is a path.
    """
    if not isinstance(name, str) or not _REPOSITORY.fullmatch(name):
        return False
    if _FILE.fullmatch(name) or Path(name).parent.is_dir():
        return False
    return importlib.util.find_spec("huggingface_hub") is not None


def download(name: str, function: str, revision: str | None = None, **options: Any) -> Path:
    """Path of the file of the network in the repository `name`, downloaded or kept from earlier.

    Args:
        name: `"user/name"`.
        function: What messages begin with.
        revision: Branch, tag or commit; None for the newest.
        **options: Others of `huggingface_hub.hf_hub_download`, such as `token` and `cache_dir`.

    Raises ValueError for a repository, revision or file that is not there; ConnectionError where
    the hub cannot be reached.
    """
    from huggingface_hub import errors, hf_hub_download

    try:
        return Path(hf_hub_download(name, FILE, revision=revision, **options))
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise ValueError(
            f"{function}: {name!r} must be a bundled name, an existing file, or a repository of "
            f"the Hugging Face Hub, got none of them ({_first_line(error)}); check the spelling, "
            "or log in if it is private"
        ) from None
    except errors.LocalEntryNotFoundError as error:
        raise ConnectionError(
            f"{function}: {name!r} must be an existing file, or a repository of the Hugging Face "
            f"Hub that can be reached, got neither ({_first_line(error)}); check the spelling, or "
            "go online"
        ) from None
    except errors.EntryNotFoundError:
        raise ValueError(
            f"{function}: the repository {name!r} must hold {FILE}, got one without; "
            "Precond.push_to_hub writes it"
        ) from None
    except (errors.HTTPError, errors.HFValidationError, OSError) as error:
        if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError):
            raise OSError(
                f"{function}: {name!r} must be downloaded into huggingface_hub's cache, got "
                f"{reason(error)}; {remedy(error)}, or set HF_HOME to another folder"
            ) from error
        raise ConnectionError(
            f"{function}: {name!r} must be a repository of the Hugging Face Hub that can be read, "
            f"got {_first_line(error)}; try again"
        ) from None


def from_pretrained(
    name: str | os.PathLike, revision: str | None = None, device: Any = "cpu", **options: Any
) -> Precond:
    """What `Precond.from_pretrained` does."""
    folder = Path(name)
    if folder.is_dir():
        if not (folder / FILE).is_file():
            raise ValueError(
                f"from_pretrained: name must be a folder that holds {FILE}, got {folder} without; "
                "name one that Precond.save_pretrained wrote"
            )
        return load_file(folder / FILE, device)
    if not is_repository(name):
        reason = "" if importlib.util.find_spec("huggingface_hub") else " (pip install it)"
        raise ValueError(
            "from_pretrained: name must be a folder, or a repository 'user/name' where "
            f"huggingface_hub is installed{reason}, got {str(name)[-100:]!r}; load reads files"
        )
    return load_file(download(str(name), "from_pretrained", revision, **options), device)


def save_pretrained(net: Precond, folder: str | os.PathLike, **info: Any) -> None:
    """What `Precond.save_pretrained` does."""
    save(net, Path(folder) / FILE, **info)


def push_to_hub(
    net: Precond,
    name: str,
    private: bool | None = None,
    message: str | None = None,
    token: str | None = None,
    **info: Any,
) -> str:
    """What `Precond.push_to_hub` does."""
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise ImportError(
            "push_to_hub: huggingface_hub must be installed, got an environment without it; "
            "pip install huggingface_hub"
        ) from None
    with TemporaryDirectory() as made:
        save_pretrained(net, made, **info)
        api = HfApi(token=token)
        name = api.create_repo(name, private=private, exist_ok=True).repo_id
        if not api.file_exists(name, "README.md"):
            (Path(made) / "README.md").write_text(_CARD.format(name=name), encoding="utf-8")
        return str(
            api.upload_folder(repo_id=name, folder_path=made, commit_message=message or MESSAGE)
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
