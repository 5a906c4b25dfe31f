"""Small copies of images to embed in a page, within a budget of bytes."""

import base64
import io
from collections.abc import Callable, Sequence

from PIL import Image

from vlm_core.data.images import decode_image

BUDGET = 12_000_000  # bytes of base64: a page that opens at once and can be sent by mail
SIDES = (768, 512, 384, 256, 192, 128, 96)  # pixels of the longer side
SAMPLE = 32  # images that are tried to choose the side


def thumbnails(digests: Sequence[str], encoded: Callable[[str], bytes], largest: int = 256) -> dict[str, str]:
    """Returns `{digest: data URI}` of as many images as the budget allows, in the largest size that fits them all.

    `largest` is the largest allowed size: the longer side in pixels, one of SIDES.
    """
    distinct = list(dict.fromkeys(digests))
    sample = [decode_image(encoded(d)) for d in distinct[:: max(1, len(distinct) // SAMPLE)][:SAMPLE]]

    def fits(side: int) -> bool:
        return sum(len(data_uri(image, side)) for image in sample) * len(distinct) <= BUDGET * len(sample)

    side = next((side for side in SIDES if side <= largest and fits(side)), SIDES[-1])
    found, used = {}, 0
    for digest in distinct:
        uri = data_uri(decode_image(encoded(digest)), side)
        used += len(uri)
        if used > BUDGET:
            break
        found[digest] = uri
    return found


def data_uri(image: Image.Image, side: int) -> str:
    """Returns a JPEG of `image` as a data URI, its longer side of `side` pixels.

    Small images are enlarged, so that single pixels can be seen.
    """
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    stream = io.BytesIO()
    image.resize(size, Image.Resampling.BICUBIC).save(stream, "jpeg", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
