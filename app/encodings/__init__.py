"""Masks as bytes: one file per format, registered by being in this folder."""
