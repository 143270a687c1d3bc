"""Indexes: what makes a store searchable, built with FAISS, measured, versioned on disk.

spec      what was asked for            choice    which structure, a pure function of size and budget
metrics   what a score means            flat      the exact structure (the one module that imports faiss)
build     store -> new version          audit     recall against brute force, speed
versions  folders, lock, CURRENT        card      what a version says of itself
items     ids and carried columns       filters   SQL -> rows
search    an opened index               verification   digests, for `embedx verify`
"""
