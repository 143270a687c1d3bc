"""Inference: runtimes that execute a frozen module, fidelity gates, and the loop that embeds a shard."""
