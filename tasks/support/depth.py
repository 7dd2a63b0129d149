"""How many values a channel has by an image file's own header: Pillow makes 8 bits of them."""

from typing import IO

from PIL import Image

WAY_OUT = (
    "Convert it to 8 bits, or keep its integers: put them into a .npz file as uint16, for the "
    "task image_npz with NUM_LEVELS set to their number."
)

_PNG_DEPTH = 24  # place of the byte
_TIFF_BITS_PER_SAMPLE = 258


def other_than_8_bits(image: Image.Image, file: IO[bytes]) -> str:
    """What a file has instead of channels of 8 bits, in words; "" where Pillow keeps its values.

    A grey PNG of 2 or 4 bits is kept: by its definition these are levels of the same 0 ... 255.

    Args:
        image: opened by Pillow, not decoded yet.
        file: what it was opened from; its position is left as it was.
    """
    if image.format == "TIFF":
        bits = max(image.tag_v2.get(_TIFF_BITS_PER_SAMPLE, (1,)))  # type: ignore[attr-defined]
        return f"{bits} bits per channel" if bits > 8 else ""
    position = file.tell()
    file.seek(0)
    if image.format == "PNG":
        bits = file.read(_PNG_DEPTH + 1)[_PNG_DEPTH]
        found = f"{bits} bits per channel" if bits > 8 else ""
    elif image.format == "PPM" and image.mode != "1":
        head = file.read(image.tile[0][2])  # type: ignore[attr-defined]  # as far as the pixels
        largest = int(head.split()[-1])
        found = f"values 0 to {largest:,} (its maxval)" if largest != 255 else ""
    else:
        found = ""
    file.seek(position)
    return found
