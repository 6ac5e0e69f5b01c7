"""Whatever speaks chat completions."""
