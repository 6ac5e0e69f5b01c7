"""Claude Code, as a process that acts as its agent."""
