"""A model on a device: placed, warmed up, tested on its own sample, answering batches."""
