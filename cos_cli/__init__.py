"""The command line of `cos`: thin commands over the stages of `cos_core`."""
