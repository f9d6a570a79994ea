"""What turns dialogues into text: one module an engine. See interfaces.Engine."""
