"""Completion for bash, zsh and fish.

The scripts in completions/ pass the words of the command line to `cos __complete` (`answer`), which looks the command up in
completions/commands.tsv, a table that `table` writes from the CLI, and gets run-time completions from `values`. Neither
`answer` nor `values` imports Typer, numpy or torch.
"""
