"""The memory of a training, before there is one."""
