"""A command for every tool, made from its declaration, and the options and words that all commands share."""
