"""Train an image classifier data-parallel on Ray, score a pile of images with it, and hand Kaggle a CSV."""

import os

# Keras reads it once, while it is imported; every process of ours imports this first.
os.environ["KERAS_BACKEND"] = "tensorflow"

__version__ = "0.1.0"
