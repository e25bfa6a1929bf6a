"""Supported image formats, and their detection from a file's first bytes.

Only formats of photos are supported, not those that need another program (EPS, WMF, PDF).
"""

from __future__ import annotations

import re

# Pillow's names. JPEG includes MPO, PPM includes all of Netpbm. HEIF is read by pillow-heif.
PILLOW_FORMATS: tuple[str, ...] = (
    "JPEG",
    "PNG",
    "WEBP",
    "GIF",
    "BMP",
    "TIFF",
    "AVIF",
    "HEIF",
    "JPEG2000",
    "PPM",
)

SUFFIXES: frozenset[str] = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
        *(".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
        *(".avif", ".avifs", ".heic", ".heics", ".heif", ".heifs", ".hif"),
        *(".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    )
)

HEAD_BYTES: int = 64

# Possible sizes of a BMP's second header, which distinguish a BMP from a text that begins with "BM".
_BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)

_AVIF_BRANDS = frozenset((b"avif", b"avis"))
_HEIF_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"))
# Containers of any codec; the compatible brands name the codec.
_CONTAINER_BRANDS = frozenset((b"mif1", b"msf1"))


def sniff(head: bytes) -> str | None:
    """Detects a file's format from its first bytes; its name does not matter.

    Args:
        head: the first `HEAD_BYTES` bytes, or the whole of a shorter file.

    Returns:
        One of `PILLOW_FORMATS`, or None if the bytes match none of them. The rest of the file may still be broken.

    Sources: ITU-T T.81 annex B (JPEG); W3C PNG, section 5.2; RFC 9649 (WebP); CompuServe GIF89a; Microsoft's
    BITMAPFILEHEADER (BMP); TIFF 6.0, section 2, and BigTIFF; ISO/IEC 15444-1 annexes A and I (JPEG 2000);
    ISO/IEC 14496-12, section 4.3, ISO/IEC 23008-12 annex B and AVIF 1.1, section 6 (the brands of `ftyp`); the manual
    pages ppm(5) and pfm(5) of Netpbm.
    """
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith(b"RIFF") and head[8:15] == b"WEBPVP8":
        return "WEBP"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if head.startswith(b"BM") and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    if head.startswith((b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n")):
        return "JPEG2000"
    if re.match(rb"P[1-6f]\s+[#\d]", head):
        return "PPM"
    return _brand(head)


def _brand(head: bytes) -> str | None:
    if head[4:8] != b"ftyp":
        return None
    major, end = head[8:12], int.from_bytes(head[:4], "big")
    # Bytes 12 to 15 are the minor version.
    brands = {major, *(head[at : at + 4] for at in range(16, min(end, len(head)), 4))}
    if major in _AVIF_BRANDS or (major in _CONTAINER_BRANDS and brands & _AVIF_BRANDS):
        return "AVIF"
    return "HEIF" if major in _HEIF_BRANDS | _CONTAINER_BRANDS else None
