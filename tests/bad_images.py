"""Files that are hard to read, in number: broken, hostile, misnamed, huge; and what decoding each of them takes."""

from __future__ import annotations

import base64
import functools
import itertools
import json
import os
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import image_kinds
import numpy as np
from helpers import zipped
from image_kinds import GREY, PICTURE, PIXELS, RGBA
from pictures import png, saved, smooth
from PIL import Image

END = b"\xff\xd9"
OK, READ, NOT_WHOLE, NONE = ("ok",), ("ok", "recovered"), ("recovered", "unreadable"), ("unreadable",)
ANY = ("ok", "recovered", "unreadable")
FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP", "tif": "TIFF", "heic": "HEIF",
           "avif": "AVIF", "jp2": "JPEG2000", "ppm": "PPM"}  # fmt: skip

# Grey of 12 bits, as libjpeg-turbo 3 encodes it.
_TWELVE_BITS = (
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAgGBgcGBQgHBwcJCQgKDBQNDAsLDBkSEw8UHRofHh0aHBwgJC4nICIsIxwcKDcpLDAxNDQ0Hyc5"
    "PTgyPC4zNDL/wQALDAAQABABAREA/8QAFAABAAAAAAAAAAAAAAAAAAAAC//EABsQAAAHAQAAAAAAAAAAAAAAAAAICiQ2QlNx/9oACAEBAAA/"
    "ADak0BZ4exxrwMgJoCzw9jjXgNPTQFnh7HGvAyAmgLPD2ONeD//Z"
)


class Bad(NamedTuple):
    """A file that is hard to read.

    Attributes:
        kind: what is hard about it.
        name: of the file, which may hold any bytes.
        content: its bytes, or what creates it at a path.
        ends: the statuses that it may end with.
    """

    kind: str
    name: bytes
    content: bytes | Callable[[Path], object]
    ends: tuple[str, ...]


class Decoding(NamedTuple):
    """What a process of its own found when it decoded a file.

    Attributes:
        status, detail: as of `images.Decoded`; empty if the process died.
        code: exit code of the process, or the negative number of the signal that ended it.
        seconds: of the CPU.
        megabytes: by which the process grew.
    """

    status: str
    detail: str
    code: int
    seconds: float
    megabytes: float


def every_bad_file() -> Iterator[Bad]:
    """All files, each with another name."""
    for number, (kind, name, content, ends) in enumerate(
        itertools.chain(_no_images(), _cut(), _flipped(), _sizes(), _bombs(), _two_in_one(), _variants())
    ):
        yield Bad(kind, f"{number:04d} {name}".encode(), content, ends)
    yield from _names()
    yield from _no_files()


def one_of_each_kind() -> list[Bad]:
    """The first file of each kind."""
    return list({bad.kind: bad for bad in reversed(list(every_bad_file()))}.values())[::-1]


def write(bad: Bad, folder: Path) -> Path:
    """Creates a file in a folder; returns its path."""
    path = folder / os.fsdecode(bad.name)
    if callable(bad.content):
        bad.content(path)
    else:
        path.write_bytes(bad.content)
    return path


_DECODE = r"""
import json, os, re, resource, sys
from catdog.data import fallback, images
images.decode_image(bytes.fromhex(sys.argv[1]), 64)  # loads what decoders load at first
fallback.declared_size(b"")
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # where libraries write of faults

def kilobytes(field):  # getrusage would tell of the process that started this one
    with open("/proc/self/status") as lines:
        return int(re.search(field + r":\s+(\d+) kB", lines.read())[1])

for path in json.load(sys.stdin):
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        resource.setrlimit(resource.RLIMIT_CPU, (120, 120))
        before = kilobytes("VmRSS")
        found = images.read_image(os.fsdecode(path.encode("latin-1")), 64)
        os.write(writing, json.dumps([*found[1:], max(0, kilobytes("VmHWM") - before) / 1024]).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read()
    _, code, used = os.wait4(child, 0)
    status, detail, megabytes = json.loads(told or b'["", "", 0]')
    print(json.dumps([status, detail, os.waitstatus_to_exitcode(code), used.ru_utime + used.ru_stime, megabytes]))
"""


def decode_each(paths: list[Path]) -> list[Decoding]:
    """Decodes each file in a process of its own, which may use two minutes of a CPU.

    Args:
        paths: of the files, in any number.
    """
    given = json.dumps([os.fsencode(path).decode("latin-1") for path in paths])
    sample = saved(Image.new("RGBA", (9, 9)), "PNG").hex()
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-P", "-c", _DECODE, sample], input=given, capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": str(root)},
    )  # fmt: skip
    return [Decoding(*json.loads(line)) for line in done.stdout.splitlines()]


# What decoding one file may take; large ones within the limit take the most.
MOST_SECONDS, MOST_MEGABYTES = 30.0, 2048.0


def find_faults(files: list[Bad], found: list[Decoding]) -> list[tuple[bytes, Decoding]]:
    """The files that do not end as they may, or without a reason, or beyond a limit."""
    return [
        (bad.name, each)
        for bad, each in zip(files, found, strict=True)
        if each.code
        or each.status not in bad.ends
        or (each.status != "ok" and not each.detail)
        or "\n" in each.detail
        or each.seconds > MOST_SECONDS
        or each.megabytes > MOST_MEGABYTES
    ]


_Named = tuple[str, str, "bytes | Callable[[Path], object]", tuple[str, ...]]


@functools.cache
def _whole() -> dict[str, bytes]:
    """A file of each format, by its suffix; of a picture with some detail, so that it is not only its header."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    picture = Image.fromarray(np.asarray(smooth(256, 192)) // 2 + noise // 2)
    return {suffix: saved(picture, name) for suffix, name in FORMATS.items()} | {
        "progressive.jpg": saved(picture, "JPEG", progressive=True),
        "cmyk.jpg": saved(picture.convert("CMYK"), "JPEG"),
        "lzw.tif": saved(picture, "TIFF", compression="tiff_lzw"),
        "alpha.png": saved(picture.convert("RGBA"), "PNG"),
    }


def _no_images() -> Iterator[_Named]:
    for suffix in ("jpg", "png", "gif"):
        yield "empty", f"empty.{suffix}", b"", NONE
    for name, content in {
        "text": b"This is a cat.\n",
        "HTML": b"<!DOCTYPE html><html><body><h1>404 Not Found</h1></body></html>",
        "Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n",
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "PDF": b"%PDF-1.7\n1 0 obj <</Type /Catalog>> endobj\n%%EOF\n",
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
        "zip": zipped({"cat.1.jpg": saved(PICTURE, "JPEG")}),
        "film": b"\0\0\0\x18ftypisom\0\0\0\0isommp42" + bytes(500),
        "Python pickle": b"\x80\x04\x95" + bytes(20),
        "zeros": bytes(5000),
        "noise": np.random.default_rng(0).bytes(5000),
        "MATLAB, PCX, ICO": b"\0\0\1\0\1\0\x10\x10" + bytes(60),
    }.items():
        yield name, f"{name}.jpg", content, NONE
    for suffix, whole in _whole().items():
        start = whole[:16]
        ends = READ if suffix == "ppm" else NONE  # whose header these are
        yield "only its first bytes", f"first.{suffix}", start, NONE
        yield "first bytes before noise", f"noise.{suffix}", start + np.random.default_rng(1).bytes(3000), ends


def _cut() -> Iterator[_Named]:
    for suffix, whole in _whole().items():
        for tenth in range(1, 10):
            cut = whole[: len(whole) * tenth // 10]
            yield f"cut {suffix}", f"cut {tenth}.{suffix}", cut, NOT_WHOLE
            if suffix.endswith("jpg"):
                yield f"cut {suffix} with an end", f"ended {tenth}.{suffix}", cut + END, NOT_WHOLE
    whole = _whole()
    for suffix in ("jpg", "png"):
        middle = whole[suffix][len(whole[suffix]) // 3 : len(whole[suffix]) // 2]
        yield "a piece twice", f"twice.{suffix}", whole[suffix].replace(middle, middle * 2), ANY
        yield "a piece missing", f"without.{suffix}", whole[suffix].replace(middle, b""), NOT_WHOLE
        yield "zeros in the middle", f"zeros.{suffix}", whole[suffix].replace(middle, bytes(len(middle))), NOT_WHOLE


def _flipped() -> Iterator[_Named]:
    random = np.random.default_rng(2)
    for suffix, whole in _whole().items():
        for number, count in enumerate((1, 1, 1, 2, 4, 8, 16, 64, 256, 1024)):
            data = np.frombuffer(whole, np.uint8).copy()
            # Half of them near the start, where the structure is.
            most = len(data) if number % 2 else min(len(data), 600)
            at = random.integers(0, most, count)
            data[at] ^= (1 << random.integers(0, 8, count)).astype(np.uint8)
            yield f"flipped bits {suffix}", f"flipped {number}.{suffix}", data.tobytes(), ANY


def _sizes() -> Iterator[_Named]:
    for suffix, kind in FORMATS.items():
        if kind != "HEIF":  # its encoder wants more
            yield "1×1", f"one.{suffix}", saved(Image.new("RGB", (1, 1), "red"), kind), READ
    for size in ((1, 20_000), (20_000, 1), (3, 16_000)):
        name = f"{size[0]} by {size[1]}"
        for kind, suffix in (("JPEG", "jpg"), ("PNG", "png"), ("BMP", "bmp"), ("TIFF", "tif"), ("GIF", "gif")):
            yield "long and thin", f"{name}.{suffix}", saved(Image.new("RGB", size, "red"), kind), READ
    for suffix in ("png", "jpg", "gif", "webp"):
        yield "large within the limit", f"large.{suffix}", _large(FORMATS[suffix], "L", (9_000, 9_000), {}), READ
    bits = _large("TIFF", "1", (9_000, 9_000), {"compression": "group4"})
    yield "large within the limit", "large bits.tif", bits, READ
    yield "large within the limit", "large alpha.png", _large("PNG", "LA", (6_000, 6_000), {}), READ


def _large(kind: str, mode: str, size: tuple[int, int], options: dict) -> Callable[[Path], object]:
    return lambda path: Image.new(mode, size).save(path, kind, **options)


def _bombs() -> Iterator[_Named]:
    for side in (20_000, 65_535, 2**31 - 1):
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        small = png(8, 2, PIXELS)
        crc = struct.pack(">I", zlib.crc32(b"IHDR" + header))
        yield "PNG bomb", f"bomb {side}.png", small[:16] + header + crc + small[33:], NONE
    for name, data in (("baseline", saved(PICTURE, "JPEG")), ("progressive", saved(PICTURE, "JPEG", progressive=True))):
        at = next(data.index(mark) for mark in (b"\xff\xc0", b"\xff\xc2") if mark in data) + 5
        yield "JPEG bomb", f"bomb {name}.jpg", data[:at] + b"\xff\xff\xff\xff" + data[at + 4 :], NONE
    lossy, extended = saved(PICTURE, "WEBP"), saved(RGBA, "WEBP")
    at = lossy.index(b"\x9d\x01\x2a") + 3
    yield "WebP bomb", "bomb lossy.webp", lossy[:at] + b"\xff\x3f\xff\x3f" + lossy[at + 4 :], NONE
    at = extended.index(b"VP8X") + 12
    yield "WebP bomb", "bomb extended.webp", extended[:at] + b"\xff" * 6 + extended[at + 6 :], NONE
    lossless = saved(PICTURE, "WEBP", lossless=True)
    at = lossless.index(b"VP8L") + 9
    yield "WebP bomb", "bomb lossless.webp", lossless[:at] + b"\xff\xff\xff\x0f" + lossless[at + 4 :], NONE
    for tag, name in {256: "width", 257: "height", 258: "depth", 277: "channels", 278: "strip", 279: "bytes"}.items():
        data = bytearray(saved(PICTURE, "TIFF"))
        at = data.index(struct.pack("<H", tag), struct.unpack_from("<I", data, 4)[0])
        data[at + 2 : at + 12] = struct.pack("<HII", 4, 1, 2_000_000_000)
        yield "TIFF bomb", f"bomb {name}.tif", bytes(data), ANY
    gif = saved(PICTURE, "GIF")
    yield "GIF bomb", "bomb screen.gif", gif[:6] + b"\xff\xff\xff\xff" + gif[10:], NONE
    at = gif.index(struct.pack("<BHHHH", 0x2C, 0, 0, 48, 32)) + 5
    yield "GIF bomb", "bomb frame.gif", gif[:at] + b"\xff\xff\xff\xff" + gif[at + 4 :], NONE
    bmp = saved(PICTURE, "BMP")
    yield "BMP bomb", "bomb.bmp", bmp[:18] + struct.pack("<ii", 2_000_000_000, 2_000_000_000) + bmp[26:], NONE
    jp2 = saved(PICTURE, "JPEG2000", no_jp2=True)
    yield "JPEG 2000 bomb", "bomb.j2k", jp2[:8] + struct.pack(">II", 2**31, 2**31) + jp2[16:], NONE
    yield "PPM bomb", "bomb.ppm", b"P6 2000000000 2000000000 255\n" + bytes(100), NONE
    for kind, suffix in (("HEIF", "heic"), ("AVIF", "avif")):
        data = saved(PICTURE, kind)
        at = data.index(b"ispe") + 8
        data = data[:at] + struct.pack(">II", 60_000, 60_000) + data[at + 8 :]
        yield "HEIC and AVIF bomb", f"bomb.{suffix}", data, ANY
    many = zlib.compress(bytes(2**26), 9)
    for name, chunks in (("text", {b"zTXt": b"Comment\0\0" + many}), ("profile", {b"iCCP": b"ICC\0\0" + many}),
                         ("words", {b"iTXt": b"XML:com.adobe.xmp\0\1\0\0\0" + many})):  # fmt: skip
        yield "PNG that inflates", f"inflates {name}.png", png(8, 2, PIXELS, chunks=chunks), ANY
        yield "PNG that inflates", f"inflates {name} alpha.png", png(8, 6, np.asarray(RGBA), chunks=chunks), ANY
    small = png(8, 2, PIXELS)
    idat = b"IDAT" + many
    chunk = struct.pack(">I", len(many)) + idat + struct.pack(">I", zlib.crc32(idat))
    yield "PNG that inflates", "inflates pixels.png", small[:33] + chunk + small[-12:], ANY
    scans = saved(PICTURE, "JPEG", progressive=True)
    last = scans[scans.rindex(b"\xff\xda") :].removesuffix(END)
    yield "JPEG of many scans", "scans.jpg", scans.removesuffix(END) + last * 1000 + END, NONE
    for suffix, count in (("gif", 100), ("webp", 40), ("png", 40)):
        yield "many frames", f"frames.{suffix}", _frames(FORMATS[suffix], count), READ
    yield "many pages", "pages.tif", _frames("TIFF", 100), READ
    data = bytearray(saved(PICTURE, "TIFF"))
    at = struct.unpack_from("<I", data, 4)[0]
    count = struct.unpack_from("<H", data, at)[0]
    data[at + 2 + 12 * count : at + 6 + 12 * count] = struct.pack("<I", at)
    yield "many pages", "endless.tif", bytes(data), READ


def _frames(kind: str, count: int) -> Callable[[Path], object]:
    frames = [Image.new("L", (200, 150), number) for number in range(count)]
    return lambda path: frames[0].save(path, kind, save_all=True, append_images=frames[1:])


def _two_in_one() -> Iterator[_Named]:
    archive, jpeg = zipped({"../../evil.txt": b"evil"}), saved(PICTURE, "JPEG")
    yield "JPEG and zip", "zip.jpg", jpeg + archive, READ
    yield "JPEG and zip", "zip first.jpg", archive + jpeg, NONE
    yield "JPEG and HTML", "html.jpg", jpeg + b"<script>alert(1)</script>", READ
    yield "JPEG and HTML", "comment.jpg", saved(PICTURE, "JPEG", comment=b"<?php system($_GET[0]); ?>"), READ
    yield "PNG and zip", "zip.png", saved(PICTURE, "PNG") + archive, READ
    yield "GIF and script", "script.gif", saved(PICTURE, "GIF") + b"/*\nalert(1) //*/", READ
    yield "PDF and JPEG", "pdf.jpg", b"%PDF-1.4\n" + jpeg, NONE
    yield "JPEG and JPEG", "two.jpg", jpeg + saved(GREY, "JPEG"), READ


def _variants() -> Iterator[_Named]:
    suffixes = ["png", "jpg", "gif", "webp", "tif", "bmp", "heic", "avif", "jp2", "ppm"]
    for suffix, other in zip(suffixes, suffixes[1:] + suffixes[:1], strict=True):
        yield "wrong suffix", f"really {suffix}.{other}", _whole()[suffix], READ
    yield "JPEG of 12 bits", "twelve.jpg", base64.b64decode(_TWELVE_BITS), NONE
    for kind, suffix in (("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("TIFF", "tif"), ("AVIF", "avif")):
        yield "broken profile", f"profile.{suffix}", saved(PICTURE, kind, icc_profile=b"\xff" * 200), READ
    for kind in image_kinds.every_kind():
        family = kind.name.split()[0].partition(".")[0]
        yield f"every kind of {family}", kind.name, kind.data, READ


def _names() -> Iterator[Bad]:
    for kind, names in {
        "name with spaces": (b" a cat .jpg", b"a  cat.jpg", b"cat.jpg .jpg"),
        "name with a line break": (b"a\ncat.jpg", b"a\rcat.jpg", b"\n.jpg", b"a\ttab.jpg"),
        "name with a comma": (b"a,cat.jpg", b",.jpg", b"a;cat.jpg"),
        "name with quotes": (b'a "cat".jpg', b"it's.jpg", b'".jpg', b'"a""b".jpg'),
        "name that is not UTF-8": (b"\xff\xfe.jpg", b"caf\xe9.jpg", b"%FF%FD.jpg", b"\xed\xa0\x80.jpg"),
        "name with a dash": (b"-rf.jpg", b"--help.jpg", b"-.jpg"),
        "name in other letters": ("кот.jpg".encode(), "猫🐈.jpg".encode(), "é.jpg".encode(), "e\u0301.jpg".encode()),
        "name of a formula": (b"=1+1.jpg", b"+cmd.jpg", b"@SUM(A1).jpg"),
        "name with marks": (b"a#1.jpg", b"a?b.jpg", b"a%20b.jpg", b"a*b[c].jpg", b"a\\b.jpg", b"$HOME.jpg"),
        "name like a packed image's": (b"x.parquet#1.jpg",),
        "long name": (b"a" * 240 + b".jpg",),
        "name in capitals": (b"CAT.JPG", b"cat.jpg", b"Cat.jpg"),
    }.items():
        for at, name in enumerate(names):
            # Each another picture, so that none is a copy.
            picture = Image.fromarray(np.roll(PIXELS, at + 7 * len(kind), axis=1))
            yield Bad(kind, name, saved(picture, "JPEG"), OK)


def _no_files() -> Iterator[Bad]:
    yield Bad("FIFO", b"fifo.jpg", os.mkfifo, NONE)
    yield Bad("device", b"device.jpg", lambda path: path.symlink_to("/dev/zero"), NONE)
    yield Bad("socket", b"socket.jpg", _socket, NONE)
    yield Bad("folder", b"folder.jpg", Path.mkdir, NONE)
    yield Bad("link to itself", b"loop.jpg", lambda path: path.symlink_to(path.name), NONE)
    yield Bad("link to nothing", b"nothing.jpg", lambda path: path.symlink_to("absent"), NONE)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as opened:
        here = Path.cwd()
        os.chdir(path.parent)  # the path of a socket is limited to 107 bytes
        try:
            opened.bind(path.name)
        finally:
            os.chdir(here)
