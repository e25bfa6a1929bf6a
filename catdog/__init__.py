"""Train an image classifier data-parallel on Ray, score a pile of images with it, and hand Kaggle a CSV."""

__version__ = "0.1.0"
