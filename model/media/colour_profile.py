"""Converts pixels from an embedded ICC colour profile to sRGB, where the difference can be seen.

littleCMS does it, with relative colorimetric intent and black point compensation. Profiles are
untrusted input: in a job this runs in the confined decode workers.
"""

import functools
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms

VISIBLE_LEVELS = 4  # of 255: a larger difference of any colour is applied
_SAME_LEVELS = 2  # up to here it is sRGB but for rounding
_MAX_PROFILE_BYTES = 16 * 1024**2
_MAX_CACHED = 8  # profiles
_STEPS = 9  # of each colour, for the comparison with sRGB
_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # ICC's colour spaces, by Pillow's modes
_CLASSES = ("scnr", "mntr", "prtr", "spac")  # others are no descriptions of a picture's colours


@dataclass(frozen=True)
class ProfileUse:
    """What to do about a profile. transform: None = nothing. mode: that it takes.

    note: for the receipt; None if there is nothing to say.
    """

    transform: ImageCms.ImageCmsTransform | None = None
    mode: str = "RGB"
    note: str | None = None

    def apply(self, picture: Image.Image) -> Image.Image:
        """Returns a picture without transparency, of mode RGB, L or CMYK, as RGB."""
        if self.transform is None:
            return picture.convert("RGB")
        return self.transform.apply(
            picture if picture.mode == self.mode else picture.convert(self.mode)
        )


def use_of_profile(profile: bytes | None, mode: str) -> ProfileUse:
    """Returns what to do about the profile of a picture of the mode RGB, L or CMYK."""
    if profile is None:
        return ProfileUse()
    if not profile or len(profile) > _MAX_PROFILE_BYTES:
        return ProfileUse(note="damaged colour profile not used")
    return _use_of_profile(profile, mode)


@functools.lru_cache(_MAX_CACHED)
def _use_of_profile(profile: bytes, mode: str) -> ProfileUse:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space, kind = source.profile.xcolor_space.strip(), source.profile.device_class
        name = _name(source)
    except Exception:  # noqa: BLE001 - Pillow's wrapper raises several kinds, all for damage
        return ProfileUse(note="damaged colour profile not used")
    takes = _MODES.get(space)
    # Grey pixels are colours of an RGB profile, too.
    if takes is None or kind not in _CLASSES or takes not in (mode, "RGB" if mode == "L" else mode):
        return ProfileUse(
            note=f"colour profile {name} not used: it is of {space} colours, the picture of {mode}"
        )
    try:
        transform = ImageCms.buildTransform(
            source, _srgb(), takes, "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )  # fmt: skip
        samples = _samples(takes)
        seen = np.asarray(transform.apply(samples), np.int16)
    except Exception:  # noqa: BLE001 - as above
        return ProfileUse(note=f"damaged colour profile {name} not used")
    levels = int(np.abs(seen - np.asarray(samples.convert("RGB"), np.int16)).max())
    if levels > VISIBLE_LEVELS:
        return ProfileUse(transform, takes, f"converted from the colour profile {name} to sRGB")
    if levels > _SAME_LEVELS:
        return ProfileUse(
            note=f"colour profile {name} not applied: it is within {levels} of 255 levels of sRGB"
        )
    return ProfileUse()


@functools.cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _samples(mode: str) -> Image.Image:
    """Returns a picture of colours that are spread over all that the mode has."""
    steps = np.linspace(0, 255, _STEPS).astype(np.uint8)
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    grid = np.stack(np.meshgrid(*[steps] * (3 if mode == "RGB" else 4), indexing="ij"), -1)
    flat = np.ascontiguousarray(grid.reshape(_STEPS, -1, grid.shape[-1]))
    return Image.frombytes(mode, (flat.shape[1], _STEPS), flat.tobytes())


def _name(profile: ImageCms.ImageCmsProfile) -> str:
    text = profile.profile.profile_description or "without a name"
    return "".join(letter for letter in text if letter.isprintable()).strip()[:60]
