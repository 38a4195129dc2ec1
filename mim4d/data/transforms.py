"""Images at the working resolution, with intrinsics that follow.

Pixel convention: the image's top-left corner is (0, 0) and pixel (i, j) has its centre at (i + 0.5, j + 0.5), so a
resize by s multiplies coordinates by s and padding on the right and at the bottom changes none.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mim4d.data.frames import Array, CameraRecord
from mim4d.errors import UserError

Image = npt.NDArray[np.uint8]


def resize_intrinsics(intrinsics: Array, scale_x: float, scale_y: float) -> Array:
    """K (3, 3) of an image resized by ``scale_x``, ``scale_y``: its first two rows are multiplied."""
    return intrinsics * np.array([[scale_x], [scale_y], [1.0]])


def padded_size(size: tuple[int, int], multiple: int) -> tuple[int, int]:
    """The smallest (height, width) of whole multiples that holds ``size``."""
    height, width = size
    return -(-height // multiple) * multiple, -(-width // multiple) * multiple


def load_image(camera: CameraRecord, size: tuple[int, int]) -> tuple[Image, Array]:
    """Read a camera's image at a working size.

    JPEG files are decoded at 1/2, 1/4 or 1/8 where that is still at least the size asked for (the decoder then skips
    most of its work), and resized from there with an antialiasing triangle filter.

    Args:
        camera: the record; its width and height must be those of the file.
        size: (height, width) to resize to; the aspect ratio may change.

    Returns:
        (height, width, 3) uint8 RGB and the intrinsics (3, 3) of that image.

    Raises:
        UserError: the file is missing, is not a readable image, or has another size than the table says.
    """
    try:
        from PIL import Image as pillow
    except ImportError:
        raise UserError("reading images needs pillow: pip install 'mim4d[train]'") from None
    height, width = size
    try:
        with pillow.open(camera.path) as file:
            if file.size != (camera.width, camera.height):
                raise UserError(
                    f"image {camera.path} is {file.size[0]}x{file.size[1]}, but sample_data.json says "
                    f"{camera.width}x{camera.height}: its calibration would not fit"
                )
            # After a draft the last row or column may reach beyond the picture; the box says where it really ends.
            drafted = file.draft("RGB", (width, height))
            box = drafted[1] if drafted else (0, 0, *file.size)
            pixels = file.convert("RGB").resize((width, height), pillow.Resampling.BILINEAR, box=box)
    except (OSError, SyntaxError, ValueError, pillow.DecompressionBombError) as error:
        raise UserError(f"unreadable image: {camera.path} ({error})") from None
    intrinsics = resize_intrinsics(camera.intrinsics, width / camera.width, height / camera.height)
    return np.array(pixels), intrinsics  # a copy: torch wants it writable
