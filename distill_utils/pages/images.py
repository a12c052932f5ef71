"""Pixels as PNG, and as data URIs that a page carries within itself."""

import base64
import io

import matplotlib
import numpy as np
from PIL import Image


def to_picture(pixels):
    """Pixels [3, H, W] in [0, 1] as a PIL image, rounded to 8 bits."""
    return Image.fromarray((pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy())


def encode(picture, kind="png", **options):
    """The bytes of a PIL image."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def _uri(picture, kind="png", **options):
    return f"data:image/{kind};base64,{base64.b64encode(encode(picture, kind, **options)).decode()}"


def image_uri(pixels):
    """A data URI of pixels [3, H, W] in [0, 1]: PNG, or JPEG above 128 px so that the page stays small."""
    picture = to_picture(pixels)
    return _uri(picture, "jpeg", quality=90) if max(picture.size) > 128 else _uri(picture)


def off_diagonal_limit(matrix):
    """The largest |S| off the diagonal, 1 where there is none: what was mined is there, the diagonal near 1
    saturates.
    """
    off = np.abs(matrix[~np.eye(len(matrix), dtype=bool)])
    off = off[np.isfinite(off)]
    return (float(off.max()) if off.size else 0.0) or 1.0


def similarity_image(similarity):
    """A data URI of S [N, N], one pixel a cell: blue below 0, white at 0, red above; and the value that
    saturates.
    """
    matrix = similarity.cpu().numpy()
    limit = off_diagonal_limit(matrix)
    colours = matplotlib.colormaps["RdBu_r"](np.clip(matrix / limit, -1, 1) / 2 + 0.5)[..., :3]
    return _uri(Image.fromarray((colours * 255).round().astype(np.uint8))), limit
