"""The original's converter, as `python -m exllamav2.conversion.convert_exl2`."""
