"""Tests of `app.architectures`; a package, so that they share `nets` and `originals`."""
