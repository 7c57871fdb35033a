"""Converts the errors of Pillow and other decoders to MediaError."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

from mediamill.model.errors import MediaError

# What decoders say of sound files of a kind that they do not know.
_UNSUPPORTED = re.compile(
    r"unsupported|not supported|not implemented|unimplemented|cannot handle|can't handle|unknown|"
    r"unrecognized(?! data stream)|unable to determine|not available|bad configuration|"
    r"^not an? \S+( \S+)? file",
    re.I,
)


@contextmanager
def picture_errors(label: str) -> Iterator[None]:
    """Raises any error within as a MediaError: on damage Pillow's plugins raise any exception.

    A file of a kind that is not known is decode_unsupported, never damaged.
    """
    try:
        yield
    except MediaError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError) as error:
        message = f"the {label} is too large to decode: {error}"
        raise MediaError("decode_too_large", message) from error
    except Exception as error:
        if isinstance(error, NotImplementedError) or _UNSUPPORTED.search(str(error)):
            message = f"the {label} is of a kind that is not read: {error}"
            raise MediaError("decode_unsupported", message) from error
        raise MediaError("decode_corrupt", f"the {label} is damaged: {error}") from error
