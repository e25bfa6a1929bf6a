"""Data-parallel training of an image classifier on Ray, batch scoring, and a CSV for Kaggle."""

import os

# Keras reads this once, when it is imported; every catdog process imports this package first.
os.environ["KERAS_BACKEND"] = "tensorflow"

__version__ = "0.1.0"
