"""Where a store's bytes lie: a local folder, or a prefix of an object store."""
