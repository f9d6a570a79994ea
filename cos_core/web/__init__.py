"""Servers: one HTTP client, addresses and keys, error messages, chat completions."""
