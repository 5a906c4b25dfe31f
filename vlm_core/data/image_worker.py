"""`python -m vlm_core.data.image_worker`: decodes the images on its standard input and prints the facts of each.

Input: of each image its length in 8 bytes, then its bytes. Output: a line of JSON for each, `{"facts"}` or `{"error"}`.
It ends with its input, so it never outlives the process that started it.
"""

import json
import sys
from typing import BinaryIO

from vlm_core.data.images import UnreadableImageError, inspect_image

LENGTH = 8  # bytes


def serve(stream: BinaryIO, answers: BinaryIO) -> None:
    """Answers until the input ends."""
    while len(head := stream.read(LENGTH)) == LENGTH:
        encoded = stream.read(int.from_bytes(head, "little"))
        try:
            answer = {"facts": vars(inspect_image(encoded))}
        except UnreadableImageError as error:
            answer = {"error": str(error)}
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
