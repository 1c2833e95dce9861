"""`python -m polybit` is `polybit`."""

from polybit.cli.main import main

if __name__ == "__main__":
    main()
