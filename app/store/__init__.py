"""Files under a model store: manifests, versions, digests, atomic publishing."""
