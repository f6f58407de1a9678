"""Tests that compare us with other implementations."""
