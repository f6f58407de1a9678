"""What is measured, one command each; the figures are in docs/performance.md."""
