"""Data sets: from a folder, bucket or archive to a catalog, and from a file's bytes to pixels.

`prepare_dataset` scans a source, detects its layout, assigns splits and copies the images, once. Everything later reads
the catalog.
"""

from catdog.exports import lazy

__getattr__, __all__ = lazy(
    __name__,
    {
        "Catalog": "catalog",
        "decode_image": "images",
        "pack_dataset": "packing",
        "prepare_dataset": "datasets",
        "read_catalog": "catalog",
        "read_image": "images",
        "synthesize": "synthetic",
    },
)
