"""A fault injector under every durable write of every stage."""
