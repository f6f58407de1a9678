"""From a picture's bytes to a mask's bytes: queueing, batching, admission. No HTTP, no torch."""
