"""What MCP offers over every transport: resources, prompts, completion, notices, tasks, questions, an app."""
