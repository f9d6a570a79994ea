"""The library behind `cos`: Chain-of-Spot from annotation to evaluation. Importing it does no work."""

__version__ = "0.1.0"
