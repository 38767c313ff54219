"""Files on disk: atomic writes, tensors and records with checksums, and the comparison of identities."""
