"""TernausNet Serve: pictures in, masks out."""

__version__ = "0.1.0"
