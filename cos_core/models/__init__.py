"""Checkpoints: finding, reading, loading, converting and writing them (layout/). The model families live here."""
