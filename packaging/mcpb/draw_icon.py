"""Draw icon.png: the server's mark, 512 by 512, from nothing but the standard library."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

SIZE = 512
CORNER = 96
BACK, MARK = (24, 36, 58), (246, 248, 252)
TRIANGLE = ((150, 116), (402, 256), (150, 396))
"""Clockwise, in pixels: the shape of the icon that the server itself sends."""


def covered(x: float, y: float) -> float:
    """How much of the pixel at (x, y) is inside the triangle, 0 to 1."""
    inside = 1.0
    for (ax, ay), (bx, by) in zip(TRIANGLE, TRIANGLE[1:] + TRIANGLE[:1], strict=True):
        length = ((bx - ax) ** 2 + (by - ay) ** 2) ** 0.5
        inside = min(inside, ((bx - ax) * (y - ay) - (by - ay) * (x - ax)) / length + 0.5)
    return max(inside, 0.0)


def opacity(x: float, y: float) -> float:
    """How much of the pixel is inside the rounded square."""
    dx, dy = max(CORNER - x, x - (SIZE - CORNER), 0.0), max(CORNER - y, y - (SIZE - CORNER), 0.0)
    return min(max(CORNER - (dx * dx + dy * dy) ** 0.5 + 0.5, 0.0), 1.0)


def png() -> bytes:
    """The picture."""
    rows = bytearray()
    for row in range(SIZE):
        rows.append(0)  # no filter
        for column in range(SIZE):
            x, y = column + 0.5, row + 0.5
            share = covered(x, y)
            rows += bytes(round(back + (mark - back) * share) for back, mark in zip(BACK, MARK, strict=True))
            rows.append(round(255 * opacity(x, y)))
    head = struct.pack(">IIBBBBB", SIZE, SIZE, 8, 6, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(bytes(rows), 9)), (b"IEND", b""))
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


if __name__ == "__main__":
    Path(__file__).with_name("icon.png").write_bytes(png())
