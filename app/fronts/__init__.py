"""Several processes: front ends for HTTP, decoding and encoding, and one with the device."""
