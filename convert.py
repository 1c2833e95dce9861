"""Converts a model to EXL2 with the flags of exllamav2's convert.py; `polybit convert` has better names."""

from polybit.__main__ import importing

if __name__ == "__main__":
    with importing():
        from polybit.cli.original_convert import main
    main()
