"""Nets as torch modules, their registry, initialisation, and the reading of published weights."""
