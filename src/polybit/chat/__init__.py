"""A conversation with a model, apart from any terminal: what was said, the `/` commands, what is kept on disk."""
