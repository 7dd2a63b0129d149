"""Bits per channel according to an image file's header; Pillow converts them to 8."""

from typing import IO

from PIL import Image

WAY_OUT = (
    "Convert it to 8 bits, or keep its integers: put them into a .npz file as uint16, for the "
    "task image_npz with NUM_LEVELS set to their number. To convert, divide: Pillow's "
    "`Image.convert` would set values above 255 to white."
)

_PNG_DEPTH = 24  # offset of the byte
_TIFF_BITS_PER_SAMPLE = 258


def other_than_8_bits(image: Image.Image, file: IO[bytes]) -> str:
    """Return the depth of a file in words; "" if it is 8 bits, whose values Pillow keeps.

    Grey PNG of 2 or 4 bits is kept too: its format defines them as levels of 0 ... 255.

    Args:
        image: opened by Pillow, not decoded yet.
        file: the open file behind it; its position is restored.
    """
    if image.mode == "F":
        return "32-bit floating-point values"
    if image.format == "TIFF":
        bits = max(image.tag_v2.get(_TIFF_BITS_PER_SAMPLE, (1,)))  # type: ignore[attr-defined]
        return f"{bits} bits per channel" if bits > 8 else ""
    position = file.tell()
    file.seek(0)
    if image.format == "PNG":
        bits = file.read(_PNG_DEPTH + 1)[_PNG_DEPTH]
        found = f"{bits} bits per channel" if bits > 8 else ""
    elif image.format == "PPM" and image.mode != "1":
        head = file.read(image.tile[0][2])  # type: ignore[attr-defined]  # up to the pixels
        largest = int(head.split()[-1])
        found = f"values 0 to {largest:,} (its maxval)" if largest != 255 else ""
    else:
        found = ""
    file.seek(position)
    return found
