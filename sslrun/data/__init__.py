"""From files to tensors: sources, labels, decoding, caches."""
