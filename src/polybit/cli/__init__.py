"""The command line: parse, call, print. Every command is a file; nothing outside this package talks to a terminal."""
