"""The file of a network: safetensors with a header and a checksum.

The entry `autoguide_fast` of the file's metadata is the header, JSON: `config` (the arguments of
`Precond`), `encoder` (a name or null), `digest` (the kind of the checksum), whatever else was
recorded when saving, and at its end `checksum`: of the header up to there and of the tensors'
names, types, shapes and bytes. Files of earlier versions have neither of the two.
"""

import json
import re

import torch

METADATA_KEY = "autoguide_fast"
DIGEST = "xxh3_128"
OWN = ("config", "encoder", "digest", "checksum")  # what else a header holds is `net.info`

# In the one entry, since safetensors writes several in any order: equal nets make equal files.
_CHECKSUM = re.compile(r', "checksum": "([0-9a-f]{32})"\}$')


def read(path, function, check=None):
    """The header (a dict) and the tensors of a file, as they are stored.

    `check(header, shapes)` may raise an error before any tensor is read; `shapes` is a dict.

    Raises ValueError, in the name of `function`, for a file that is not such a checkpoint or whose
    contents do not have the checksum that it carries.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            text, header = _header(path, file, function)
            names = file.keys()
            if check is not None:
                check(header, {k: tuple(file.get_slice(k).get_shape()) for k in names})
            tensors = {k: file.get_tensor(k) for k in names}
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, function, error) from None
    found = _CHECKSUM.search(text)
    if found:
        whole = found[1] == _checksum(text[: found.start()] + "}", tensors)
    else:
        whole = header.get("digest") != DIGEST  # which tells of a checksum that is not there
    if not whole:
        raise ValueError(
            f"{function}: {path} must have the contents that were saved, got others by its "
            "checksum: it is damaged, or another program has changed it; restore it, or save the "
            "network again with autoguide_fast.checkpoints.save"
        )
    return header, tensors


def read_header(path, function):
    """The header of a file, without a look at the tensors.

    Raises ValueError, in the name of `function`, for a file that is not such a checkpoint, or whose
    length is not what its tensors need.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return _header(path, file, function)[1]
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, function, error) from None


def _header(path, file, function):
    """The header of an open file as text and as a dict."""
    text = (file.metadata() or {}).get(METADATA_KEY, "null")
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:  # also of a number or a nesting without end
        raise _unreadable(path, function, error) from None
    if not isinstance(header, dict) or not isinstance(header.get("config"), dict):
        raise ValueError(
            f"{function}: {path} must say how its network is built, got a safetensors file without "
            f"the metadata {METADATA_KEY!r}; save the network with autoguide_fast.checkpoints.save"
        )
    return text, header


def _unreadable(path, function, error):
    return ValueError(
        f"{function}: {path} must be a safetensors file written by autoguide_fast, got one that "
        f"cannot be read ({error}); save the network with autoguide_fast.checkpoints.save"
    )


def write(path, header, tensors):
    """Write a file: its header, a dict as text, and its tensors, with their checksum."""
    from safetensors.torch import save_file

    path.touch()
    mode = path.stat().st_mode  # the user's own; safetensors would let nobody else read
    header = f'{header[:-1]}, "checksum": "{_checksum(header, tensors)}"}}'
    save_file(tensors, path, metadata={METADATA_KEY: header})
    path.chmod(mode)


def _checksum(header, tensors):
    """Checksum of a header and of the names, types, shapes and bytes of tensors, in hexadecimal."""
    import xxhash  # at 10 GB/s and more it is not felt

    digest = xxhash.xxh3_128(header.encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"\0{name}\0{value.dtype}\0{list(value.shape)}\0".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
