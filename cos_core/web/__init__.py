"""Servers: one HTTP client, the addresses a user gives, what servers say, chat completions."""
