"""The version, alone in its file: ranks below the package itself write it into files."""

__version__ = "0.1.0"
