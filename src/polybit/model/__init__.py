"""A model folder opened, planned, built and run."""
