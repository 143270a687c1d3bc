"""Hashed words as an encoder for embedx."""
