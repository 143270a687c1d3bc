"""Steps: extract, index, search, fit-head, evaluate, predict, verify: the only wiring between the layers."""
