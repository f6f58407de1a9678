"""Bytes to pixels, and pixels to the tiles that a net takes and back."""
