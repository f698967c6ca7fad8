"""Any Pillow image as upright RGB of 8 bits."""

from contextlib import suppress

import numpy as np
from PIL import ExifTags, Image

# What turns an image upright, by its orientation (Exif 2.3, tag 0x0112); 1 is upright.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def turn(image: Image.Image) -> Image.Transpose | None:
    """What turns an image upright; None where it stands so, or says nothing that can be read.

    EXIF has the first word.  Where it says nothing, XMP is asked, as Pillow does: programs that turn a PNG
    or a TIFF may note it there alone, and their viewers go by it.
    """
    with suppress(Exception):  # a garbled block says nothing against the pixels
        return TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    return None


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow image as upright RGB of 8 bits.

    - Turned as its orientation says (`turn`): cameras store the sensor's view and a note.
    - Transparency (alpha channel, palette entry or colour key) is laid on white.  Such images are drawings
      and cut-outs made for web pages, which are white; dropping the channel would show whatever colours
      happen to lie beneath.
    - 16 and 32 bits a pixel are scaled to 8; Pillow's own conversion clips, which turns most pixels white.
    - Grey, palette, CMYK (Adobe's inverted kind is turned round by Pillow's reader): Pillow's conversion.
    """
    image.load()  # whatever is wrong with the pixels comes out here
    transpose = turn(image)  # of a TIFF, Pillow has done it, and taken the note away
    if transpose is not None:
        image = image.transpose(transpose)
    if image.mode.startswith(("I", "F")):
        image = _scaled_to_8_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _scaled_to_8_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits (modes "I;16..."), of 32-bit integers ("I") or of floats ("F") as grey of 8 bits.

    16 bits are scaled by their full range.  The other modes do not say what white is: it is the least of 1,
    255 and 65535 that covers the pixels, and beyond these the image's own range is stretched.
    """
    pixels = np.nan_to_num(np.asarray(image, dtype=np.float32))
    black, white = 0.0, 65535.0
    if not image.mode.startswith("I;16"):
        least, greatest = float(pixels.min()), float(pixels.max())
        fitting = [white for white in (1.0, 255.0, 65535.0) if least >= 0 and greatest <= white]
        black, white = (0.0, fitting[0]) if fitting else (least, greatest)
    scaled = (pixels - black) * (255 / max(white - black, 1e-12))
    return Image.fromarray(scaled.round().astype(np.uint8))
