"""The parts of a transformer block: spec node + weights -> callable."""
