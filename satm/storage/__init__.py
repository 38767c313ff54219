"""Files on disk: atomic writes, hashes, tensors and records with checksums, and the comparison of identities."""
