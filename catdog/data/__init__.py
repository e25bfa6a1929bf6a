"""From what people have to a catalog, and from a file's bytes to pixels.

A source (a folder, a bucket, an archive) is surveyed, laid out, split and copied once by `prepare_dataset`; all that
comes after reads the catalog.
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
