"""Turns an unquantized model folder into an EXL2 one: calibration, rounding, bit allocation, a job that resumes."""
