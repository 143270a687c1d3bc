"""Encoders: frozen pretrained models with their own preprocessing, one family a file."""
