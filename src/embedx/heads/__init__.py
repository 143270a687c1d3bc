"""Heads: what is learned on top of frozen vectors. scikit-learn and skops live here and nowhere else.

spec      what was asked for              splits    hold-out and folds, pure functions
fit       vectors + labels -> estimator   sweep     the search for C
metrics   how good predictions are        page      the report a person reads
folder    atomic replacement              card      what a head says of itself
head      an opened head                  artefact  head.skops, and the types it may hold
verification  digests, for `embedx verify`
"""
