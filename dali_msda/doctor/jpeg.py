"""JPEG files for timing the decoder, made without an encoder, because the library does not need Pillow.

A JPEG can have restart intervals, which are decoded independently. One small encoded tile, stored here, is
repeated into an image of any size. Its spectrum and its bytes per pixel are like a photo's, and it is decoded
correctly if all tiles are the same.
"""

from __future__ import annotations

import base64
import struct

TILE_HEIGHT, TILE_WIDTH = 16, 64
# Mean red, green and blue of the decoded tile.
TILE_MEAN = (117.3, 117.7, 117.5)
_UNITS = 4  # blocks of 16 x 16 pixels (4:2:0) in a tile
# A baseline JPEG of one tile: noise with the spectrum of photographs, quality 85.
_TILE = base64.b64decode(
    """
    /9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAUDBAQEAwUEBAQFBQUGBwwIBwcHBw8LCwkMEQ8SEhEPERETFhwXExQaFRERGCEYGh0dHx8f
    ExciJCIeJBweHx7/2wBDAQUFBQcGBw4ICA4eFBEUHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4e
    Hh7/wAARCAAQAEADASIAAhEBAxEB/8QAHwAAAQUBAQEBAQEAAAAAAAAAAAECAwQFBgcICQoL/8QAtRAAAgEDAwIEAwUFBAQAAAF9AQID
    AAQRBRIhMUEGE1FhByJxFDKBkaEII0KxwRVS0fAkM2JyggkKFhcYGRolJicoKSo0NTY3ODk6Q0RFRkdISUpTVFVWV1hZWmNkZWZnaGlq
    c3R1dnd4eXqDhIWGh4iJipKTlJWWl5iZmqKjpKWmp6ipqrKztLW2t7i5usLDxMXGx8jJytLT1NXW19jZ2uHi4+Tl5ufo6erx8vP09fb3
    +Pn6/8QAHwEAAwEBAQEBAQEBAQAAAAAAAAECAwQFBgcICQoL/8QAtREAAgECBAQDBAcFBAQAAQJ3AAECAxEEBSExBhJBUQdhcRMiMoEI
    FEKRobHBCSMzUvAVYnLRChYkNOEl8RcYGRomJygpKjU2Nzg5OkNERUZHSElKU1RVVldYWVpjZGVmZ2hpanN0dXZ3eHl6goOEhYaHiImK
    kpOUlZaXmJmaoqOkpaanqKmqsrO0tba3uLm6wsPExcbHyMnK0tPU1dbX2Nna4uPk5ebn6Onq8vP09fb3+Pn6/9oADAMBAAIRAxEAPwDl
    tSj8nxdpltqemFoJZ2REEnybmcszsSxLHoecc9M5567xNpNjJrEkUd017GLZCY5IzmPuoUjBBVSeBxwMAgVxHjK38UyR22r3VvFeXZlE
    EMcbKV8tWA2nkBnyV5Ib8MYpPBn9trdTareXUlq587bFcDYGBwFQNjgAo3BHOQB1yYpRk2rnNDludc8E+peFpryWWSCzLDDzhItoydwY
    qQAONwHJwenXHGnwrPdauqXutIYXy7IHG4ICrbA2cLgnoOMEHtit3xWdQ1C0d7OCOFBtUsqqvnYPOVY4zjGQATyD7DhNE8S6/ba8mhXF
    s0t0hEj3dwxVmwDhsHKkYHAGDkD0r19OTU9jD8rjoeo3Vh9stZob2W03LCpRvL3NGjMCsbqccnaoI7jng4Fa+n3HiTQLa4Om6NaXUclv
    hb8rvOzbyCOu7qAB3HJ5p3hjxBpkVhPHf2EUcccIdtQuEYq8TYbIDHjAAxuHAOR2qh8QH1LWxEmhT2sMC2gaa1hcKFjIJ8wKrZ6jPXOS
    M/eGPIrStJ3OPEtXsV/Bmow30FzZahpssMwjaK8JLtIASoQcn5TjHJB25PrirOmNp2l6b9lOmEXG5ZVJjY7N3zYDEBsnqewP4EQ+FNLs
    k0681C9jabWzcL588YVmnUfMA/IwoxjnHGKrw6xdS301vEEuZo5CUVgEicH51Pyg4bPB55C4XrXIvI4pNn//2Q==
    """
)


def repeat_tile(rows: int, columns: int) -> bytes:
    """Make a JPEG of rows x columns tiles: ``16 * rows`` pixels high, ``64 * columns`` wide."""
    frame, scan = _TILE.index(b"\xff\xc0"), _TILE.index(b"\xff\xda")
    (length,) = struct.unpack_from(">H", _TILE, scan + 2)
    start = scan + 2 + length
    size = struct.pack(">HH", TILE_HEIGHT * rows, TILE_WIDTH * columns)
    # Height and width come after marker, length and precision.
    header = _TILE[: frame + 5] + size + _TILE[frame + 9 : scan]
    interval = b"\xff\xdd" + struct.pack(">HH", 4, _UNITS)
    data = _TILE[start:-2]
    count = rows * columns
    # Restart markers count from 0 to 7, between the intervals.
    body = b"".join(data + (bytes([0xFF, 0xD0 + i % 8]) if i < count - 1 else b"") for i in range(count))
    return header + interval + _TILE[scan:start] + body + b"\xff\xd9"
