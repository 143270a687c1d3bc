"""Corpora: what the sources list, and how an item's content is read."""
