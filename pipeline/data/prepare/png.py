"""Uncompressed PNG files, and the image formats that shards hold."""

import struct
import zlib

import numpy as np

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def encode_png(pixels: np.ndarray) -> bytes:
    """Encode uint8 (H, W, 1 or 3) as a PNG file without compression.

    The bytes do not depend on the version of a compression library.
    """
    height, width, channels = pixels.shape
    rows = np.zeros((height, 1 + width * channels), np.uint8)  # each row begins with its filter type: 0, none
    rows[:, 1:] = pixels.reshape(height, -1)
    raw = rows.tobytes()
    zlib_stream = b"\x78\x01" + stored_blocks(raw) + struct.pack(">I", zlib.adler32(raw))  # RFC 1950
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if channels == 3 else 0, 0, 0, 0)
    return PNG_SIGNATURE + b"".join(
        png_chunk(kind, body) for kind, body in ((b"IHDR", header), (b"IDAT", zlib_stream), (b"IEND", b""))
    )


def stored_blocks(content: bytes) -> bytes:
    """Return a deflate stream of uncompressed blocks (RFC 1951, section 3.2.4)."""
    blocks = [content[i : i + 65535] for i in range(0, len(content), 65535)] or [b""]
    return b"".join(
        struct.pack("<BHH", i == len(blocks) - 1, len(block), len(block) ^ 0xFFFF) + block
        for i, block in enumerate(blocks)
    )


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """Return one PNG chunk: length, type, body and CRC-32."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def image_format(content: bytes) -> str | None:
    """Return 'jpg' or 'png' by the first bytes of an image file, None for any other format."""
    if content.startswith(b"\xff\xd8\xff"):
        return "jpg"
    return "png" if content.startswith(PNG_SIGNATURE) else None
