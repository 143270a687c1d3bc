"""Values and pure functions every other layer builds on: numpy and the standard library only."""
