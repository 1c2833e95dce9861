"""`python -m exllamav2.conversion.convert_exl2` takes the flags of `convert.py`."""

from polybit.cli.original_convert import main

if __name__ == "__main__":
    main()
