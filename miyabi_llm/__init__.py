"""From a model's name to a verified, served, measured model of your own."""

__version__ = "0.1.0"
