"""The HTTP side: the REST API, its streams, and a simulator of the Messages API."""
