"""Past one machine: the same segmenter on a Ray cluster. Needs the extra `ray`."""
