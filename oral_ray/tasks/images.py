"""Image files as RGB squares, by one rule, whatever their mode and size.

The first frame of an animation, turned as its EXIF says; what is transparent lies on white; 16 bits are scaled to 8; grey,
palette and CMYK become RGB; the largest square in the middle is resized (bicubic, antialiased). Refused with a reason: what
Pillow does not read as one of `FORMATS`, a file that is cut off, images of more than `MAX_PIXELS` (which is asked before
anything is unpacked), floating-point images.

    pixels = rgb_pixels(Path("cat.png").read_bytes(), size=64)        # uint8 [64, 64, 3]
"""

import io
import warnings

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
MAX_PIXELS = 64_000_000
MAX_BYTES = 100_000_000


def check_image(data: bytes) -> None:
    """ValueError, with the reason, for bytes that are no image or none that is read here."""
    _decoded(data)


def rgb_pixels(data: bytes, size: int) -> np.ndarray:
    """Pixels [size, size, 3] uint8 of an image file; ValueError as `check_image`."""
    image = _decoded(data)
    return np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC))


def _decoded(data: bytes) -> Image.Image:
    """The first frame in RGB."""
    if len(data) > MAX_BYTES:
        raise ValueError(f"has {len(data):,} bytes, at most {MAX_BYTES:,} are read; save it smaller")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large images; the limit here is asked below
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(_too_large(f"{image.width} x {image.height} pixels"))
            image.load()
            return _rgb(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError:
        raise ValueError(_too_large("far more pixels than that")) from None
    except Image.UnidentifiedImageError:
        raise ValueError(f"is no image that is read here ({', '.join(FORMATS)})") from None
    except (OSError, SyntaxError, EOFError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"cannot be read, it is cut off or damaged ({error})") from None


def _too_large(what: str) -> str:
    return f"has {what}, at most {MAX_PIXELS:,} are read; save it smaller"


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("has floating-point pixels, whose white is not known; save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 bits, in Pillow's spellings of it
        levels = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray(((levels + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        seen = image.convert("RGBA")
        white = Image.new("RGBA", seen.size, "white")
        return Image.alpha_composite(white, seen).convert("RGB")
    return image.convert("RGB")
