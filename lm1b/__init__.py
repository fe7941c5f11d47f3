"""lm1b: recurrent language models on the 1 Billion Word benchmark."""

__version__ = "0.1.0"
