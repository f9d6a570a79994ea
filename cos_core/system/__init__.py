"""The process and the machine: worker processes, memory, standard streams, installed packages, bounds of numbers."""
