"""How fast a model is on this machine, beside what the machine could do. Not the kernels one by one."""
