"""The Beam jobs of tokzip: the backbone (splits, manifest, map_splits), the two stages and the command line."""
