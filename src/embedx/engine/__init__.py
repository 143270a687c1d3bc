"""The engine: a Dask cluster and a window of tasks. It runs callables; it knows no models and no files."""
